// Hostile tokenizer.json files: the first half of an input is the file, the rest a text to encode.
// Whatever happens must be an Error, or ids of the vocabulary.
//
//   cmake --preset fuzz && cmake --build --preset fuzz
//   build-fuzz/fuzz/tokenizer_json_fuzz -max_len=65536 -timeout=20 CORPUS   (start:
//   tests/formats/golden)
#include <cstdlib>

#include "base/error.h"
#include "formats/hf_tokenizer.h"
#include "formats/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pronghorn;
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(all.rfind('}') + 1, all.size());
  try {
    const auto tokenizer =
        make_hf_tokenizer(parse_json(all.substr(0, end), "fuzz"), {}, "fuzz", {});
    const std::string text = std::string(all.substr(end)) + "The anchor <s> 123 \xE4\xBD\xA0\n";
    const std::vector<int32_t> ids = tokenizer->encode(text);
    for (const int32_t id : ids) {
      if (id < 0 || id >= tokenizer->vocab_size()) std::abort();
    }
    tokenizer->decode(ids);
    TextStream stream(*tokenizer, false);
    for (const int32_t id : ids) stream.push(id);
  } catch (const Error&) {
  }
  return 0;
}
