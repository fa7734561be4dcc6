// The text models of Qwen3.5 with experts in every layer, on their own and within a model that
// sees.
#include "base/error.h"
#include "model/families.h"
#include "model/families/mixture.h"
#include "model/families/qwen_hybrid.h"

namespace pronghorn {
namespace {

ModelConfig read_text(ConfigReader reader) {
  // No layer has a feed-forward of such a size.
  HybridDecoder model = read_qwen_hybrid(reader, 1);
  require(reader.boolean("norm_topk_prob", true), reader.path("norm_topk_prob"),
          "false is not supported");
  read_qwen_experts(reader, model.decoder, 256, 8);
  return model.finish(reader);
}

std::optional<nlohmann::json> write_text(const ModelConfig& config) {
  if (!has_experts(config)) return {};
  std::optional<nlohmann::json> json =
      write_qwen_hybrid(config, "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM");
  if (!json) return {};
  json->erase("intermediate_size");
  json->update(write_qwen_experts(config));
  return json;
}

TensorRules text_tensors(const ModelConfig& config) {
  return qwen_hybrid_tensors(config, "model", false);
}
TensorRules whole_tensors(const ModelConfig& config) {
  return qwen_hybrid_tensors(config, "model.language_model", false, true);
}

ModelConfig read_whole(ConfigReader reader) { return read_text(qwen_text(reader)); }

std::optional<nlohmann::json> write_whole(const ModelConfig& config) {
  return write_qwen_whole(config, write_text(config), "qwen3_5_moe",
                          "Qwen3_5MoeForConditionalGeneration");
}

}  // namespace

Family qwen3_5_moe_text_family() {
  static const GgufFormat gguf = qwen3_5_gguf("qwen35moe", qwen_gguf_expert_keys());
  return {"qwen3_5_moe_text", read_text, write_text, text_tensors, &gguf};
}
Family qwen3_5_moe_family() { return {"qwen3_5_moe", read_whole, write_whole, whole_tensors}; }

}  // namespace pronghorn
