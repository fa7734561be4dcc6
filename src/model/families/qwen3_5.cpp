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

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_qwen_gguf(file, config);
  read_qwen_output_order(file, config);
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_qwen_gguf(config, json, file);
  write_qwen_sections(file);
}

TensorRules gguf_tensors(const ModelConfig& config) { return qwen_gguf_tensors(config, false); }

}  // namespace

Family qwen3_5_text_family() {
  static const GgufFormat gguf = {
      "qwen35", qwen_gguf_keys({}), qwen_gguf_other_keys(), read_gguf, write_gguf, gguf_tensors, {},
      nullptr,  with_grouped_heads};
  return {"qwen3_5_text", read_text, write_text, text_tensors, &gguf};
}

Family qwen3_5_family() { return {"qwen3_5", read_whole, write_whole, whole_tensors}; }

}  // namespace pronghorn
