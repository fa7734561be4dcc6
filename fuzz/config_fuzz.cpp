// config.json of every family: whatever it says, it ends in an Error or in a configuration of which
// an outline can be made, and which is read back as what was written.
//
// config_fuzz -max_len=4096 tests/model/golden (its config.json files)
#include <string>

#include "base/error.h"
#include "formats/json.h"
#include "model/config.h"
#include "model/families.h"
#include "model/model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pronghorn;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const ConfigReader reader(parse_json(text, "config.json"), "config.json");
    ModelConfig config = find_family(reader).read(reader);
    const nlohmann::json written = write_pronghorn_config(config);
    if (write_pronghorn_config(read_pronghorn_config(ConfigReader(written, "again"))) != written) {
      __builtin_trap();
    }
    if (config.block_count() <= 8 && config.hidden_size <= 256) Model::outline(std::move(config));
  } catch (const Error&) {
  }
  return 0;
}
