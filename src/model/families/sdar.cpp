// SDAR (arXiv 2510.06303): Qwen3 taught to fill in the masked tokens of a block, which sees itself
// both ways and the blocks before it.
#include "base/error.h"
#include "model/families.h"
#include "model/families/decoder.h"

namespace pronghorn {
namespace {

constexpr int64_t kMaskToken = 151669, kBlock = 4;  // of the published models

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {.kv_heads = 32, .head_dim = 128});
  decoder.mixer["qk_norm"] = true;
  read_attention_bias(reader, decoder);
  require(!reader.boolean("use_sliding_window", false), reader.path("use_sliding_window"),
          "true is not what a model can have that sees both ways");
  reader.ignore("sliding_window");
  decoder.settings["diffusion"] = {{"mask_token", reader.integer("mask_token_id", kMaskToken, 0)},
                                   {"block", reader.integer("block_size", kBlock, 1)}};
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = decoder_layers(config);
  if (layers.empty() || !config.diffusion || config.diffusion->block == 0) return {};
  nlohmann::json json = write_decoder(config, "sdar", "SDARForCausalLM");
  json["attention_bias"] = layers.front()->mixers.front().at("bias");
  json["mask_token_id"] = config.diffusion->mask_token;
  json["block_size"] = config.diffusion->block;
  return json;
}

}  // namespace

Family sdar_family() { return {"sdar", read, write, decoder_tensors}; }

}  // namespace pronghorn
