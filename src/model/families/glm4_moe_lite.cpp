// The GLM-4.7-Flash family: the layers of DeepSeek-V3 in other sizes, each of them named dense or
// sparse.
#include "model/families.h"
#include "model/families/deepseek.h"
#include "model/families/mla_keys.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  MlaDefaults mla;
  mla.query_rank = 768;
  mla.head_dim = 192;
  mla.value_dim = 256;
  mla.interleaved = reader.boolean("rope_interleave", true);
  Decoder decoder = read_mla_decoder(reader, mla, {.epsilon = 1e-5, .rope = {}});
  const DeepseekDefaults defaults = {
      .experts = 64, .top_k = 4, .size = 1536, .dense = 1, .scale = 1.8};
  read_deepseek_experts(reader, decoder, defaults, read_corrected_router(reader, defaults),
                        read_layer_types_of_mlp(reader, decoder.layers));
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  std::optional<nlohmann::json> json =
      write_mla_decoder(config, "glm4_moe_lite", "Glm4MoeLiteForCausalLM");
  if (!json || !has_experts(config)) return {};
  json->update(write_deepseek_experts(config));
  (*json)["rope_interleave"] =
      layer_blocks(config).front()->mixers.front().at("rope").at("interleaved");
  (*json)["mlp_layer_types"] = layer_types_of_mlp(config);
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  return deepseek_tensors(config, mla_decoder_tensors);
}

}  // namespace

Family glm4_moe_lite_family() {
  static const GgufFormat gguf = gguf_deepseek2(read_gguf_deepseek2);
  return {"glm4_moe_lite", read, write, tensors, &gguf};
}

}  // namespace pronghorn
