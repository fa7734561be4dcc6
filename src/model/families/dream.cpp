// Dream (arXiv 2508.15487): Qwen2 taught to fill in masked tokens. Layers see both ways, and a row
// still scores the token after it.
#include "base/error.h"
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"

namespace pronghorn {
namespace {

constexpr int64_t kMaskToken = 151666;  // of the published models

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

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_attention(file, config);
  read_gguf_diffusion(file, kMaskToken, true, config);
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_gguf_attention(config, json, file);
  write_gguf_diffusion(config, file);
}

TensorRules gguf_tensors(const ModelConfig& config) { return gguf_decoder_tensors(config, {}); }

}  // namespace

Family dream_family() {
  static const GgufFormat gguf = {"dream",
                                  gguf_decoder_keys(),
                                  gguf_decoder_other_keys(),
                                  read_gguf,
                                  write_gguf,
                                  gguf_tensors,
                                  {},
                                  nullptr,
                                  nullptr,
                                  {},
                                  true};
  return {"Dream", read, write, decoder_tensors, &gguf};
}

}  // namespace pronghorn
