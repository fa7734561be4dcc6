// Dream (arXiv 2508.15487): Qwen2 taught to fill in masked tokens. Layers see both ways, and a row
// still scores the token after it.
#include "base/error.h"
#include "model/families.h"
#include "model/families/decoder.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {.kv_heads = 32});
  read_no_bias(reader);
  decoder.mixer["bias"] = true;
  decoder.settings["diffusion"] = {{"mask_token", reader.integer("mask_token_id", {}, 0)},
                                   {"shift", true}};
  require(!reader.boolean("use_sliding_window", false), reader.path("use_sliding_window"),
          "true is not what a model can have that sees both ways");
  reader.ignore("sliding_window");
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  if (decoder_layers(config).empty() || !config.diffusion) return {};
  nlohmann::json json = write_decoder(config, "Dream", "DreamModel");
  json["mask_token_id"] = config.diffusion->mask_token;
  return json;
}

}  // namespace

Family dream_family() { return {"Dream", read, write, decoder_tensors}; }

}  // namespace pronghorn
