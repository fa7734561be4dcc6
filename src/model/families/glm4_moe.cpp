// The GLM-4.5 family (arXiv 2508.06471): grouped-query attention with half of each head turned, and
// the experts of DeepSeek-V3.
#include "model/families.h"
#include "model/families/deepseek.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  const RopeDefaults rope = {.partial = 0.5, .has_partial = true};
  Decoder decoder = read_decoder(reader, {.kv_heads = 8, .epsilon = 1e-5, .rope = rope});
  decoder.mixer["bias"] = reader.boolean("attention_bias", false);
  decoder.mixer["qk_norm"] = reader.boolean("use_qk_norm", false);
  const DeepseekDefaults defaults = {.experts = 128, .top_k = 8, .size = 1408, .dense = 1};
  read_deepseek_experts(reader, decoder, defaults, read_corrected_router(reader, defaults));
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = mixture_layers(config);
  if (layers.empty()) return {};
  const nlohmann::json& mixer = layers.front()->mixers.front();
  if (mixer.at("rope").is_null()) return {};
  nlohmann::json json = write_decoder(config, "glm4_moe", "Glm4MoeForCausalLM");
  json.update(write_deepseek_experts(config));
  json["attention_bias"] = mixer.at("bias");
  json["use_qk_norm"] = mixer.at("qk_norm");
  json["partial_rotary_factor"] =
      rotary_share(mixer.at("rope").at("rotary_dim"), mixer.at("head_dim"));
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  return deepseek_tensors(decoder_tensors(config), config);
}

}  // namespace

Family glm4_moe_family() { return {"glm4_moe", read, write, tensors}; }

}  // namespace pronghorn
