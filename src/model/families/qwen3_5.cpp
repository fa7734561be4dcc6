// The text models of Qwen3.5, on their own and within a model that sees.
#include "model/families.h"
#include "model/families/qwen_hybrid.h"

namespace pronghorn {
namespace {

ModelConfig read_text(ConfigReader reader) { return read_qwen_hybrid(reader).finish(reader); }

std::optional<nlohmann::json> write_text(const ModelConfig& config) {
  return write_qwen_hybrid(config, "qwen3_5_text", "Qwen3_5ForCausalLM");
}

TensorRules text_tensors(const ModelConfig& config) {
  return qwen_hybrid_tensors(config, "model", false);
}
TensorRules whole_tensors(const ModelConfig& config) {
  return qwen_hybrid_tensors(config, "model.language_model", false);
}

ModelConfig read_whole(ConfigReader reader) { return read_text(qwen_text(reader)); }

std::optional<nlohmann::json> write_whole(const ModelConfig& config) {
  return write_qwen_whole(config, write_text(config), "qwen3_5", "Qwen3_5ForConditionalGeneration");
}

}  // namespace

Family qwen3_5_text_family() {
  static const GgufFormat gguf = qwen3_5_gguf("qwen35", {});
  return {"qwen3_5_text", read_text, write_text, text_tensors, &gguf};
}

Family qwen3_5_family() { return {"qwen3_5", read_whole, write_whole, whole_tensors}; }

}  // namespace pronghorn
