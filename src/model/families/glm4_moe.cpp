// The GLM-4.5 family (arXiv 2508.06471): grouped-query attention with half of each head turned, and
// the experts of DeepSeek-V3.
#include <utility>

#include "base/error.h"
#include "model/families.h"
#include "model/families/deepseek.h"
#include "model/families/gguf_decoder.h"
#include "model/families/predictor.h"

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

TensorRules tensors(const ModelConfig& config) { return deepseek_tensors(config, decoder_tensors); }

std::vector<std::string_view> gguf_other_keys() {
  std::vector<std::string_view> keys = gguf_decoder_other_keys();
  keys.insert(keys.end(), {kGgufScores, kGgufPredictors});
  return keys;
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  require(gguf_router_scores(file) == "sigmoid", file.metadata.path(file.key(kGgufScores)),
          "this family has sigmoids only");
  config["partial_rotary_factor"] = 1.0;  // unless the file says how many channels are turned
  read_gguf_attention(file, config);
  read_gguf_deepseek_experts(file, config);
  config["attention_bias"] = file.has("blk.0.attn_q.bias");
  config["use_qk_norm"] = file.has("blk.0.attn_q_norm.weight");
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_gguf_attention(config, json, file);
  write_gguf_deepseek_experts(config, file);
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return with_gguf_predictors(config, [](const ModelConfig& some) {
    return with_gguf_experts(gguf_decoder_tensors(some, {.ffn_norm = "post_attention_norm"}), some);
  });
}

}  // namespace

Family glm4_moe_family() {
  static const GgufFormat gguf = {"glm4moe",         gguf_decoder_keys(gguf_deepseek_keys()),
                                  gguf_other_keys(), read_gguf,
                                  write_gguf,        gguf_tensors};
  return {"glm4_moe", read, write, tensors, &gguf};
}

}  // namespace pronghorn
