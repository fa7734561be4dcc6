// Kimi K2.5: the text model of a model that also sees, which is Kimi K2 (arXiv 2507.20534) with its
// keys under text_config and its tensors under language_model.
#include "model/families.h"

namespace pronghorn {
namespace {

constexpr const char *kText = "text_config", *kTied = "tie_word_embeddings";
constexpr const char* kPrefix = "language_model.";

ModelConfig read(ConfigReader whole) {
  ConfigReader text = whole.object(kText);
  nlohmann::json keys = whole.raw(kText);
  keys[kTied] = whole.boolean(kTied, text.boolean(kTied, false));
  return kimi_k2_family().read(ConfigReader(std::move(keys), text.where()));
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  std::optional<nlohmann::json> text = kimi_k2_family().write(config);
  if (!text) return {};
  return nlohmann::json{{"model_type", "kimi_k25"},
                        {"architectures", {"Kimi_K25ForConditionalGeneration"}},
                        {kTied, config.tie_embeddings},
                        {kText, std::move(*text)}};
}

TensorRules tensors(const ModelConfig& config) {
  TensorRules tensors = kimi_k2_family().tensors(config);
  const auto prefix = [](std::string& name) { name.insert(0, kPrefix); };
  for (std::vector<TensorRule>* rules : {&tensors.rules, &tensors.layouts}) {
    for (TensorRule& rule : *rules) {
      for (std::string& name : rule.published) prefix(name);
    }
  }
  for (std::string& name : tensors.passed_over) prefix(name);
  for (TensorRules::Alias& alias : tensors.aliases) {
    prefix(alias.name);
    prefix(alias.other);
  }
  // As transformers names them in memory.
  tensors.aliases.insert(tensors.aliases.end(),
                         {{"language_model.model.*", "model.language_model.*"},
                          {"language_model.lm_head.weight", "lm_head.weight"}});
  // The tower for images, and what joins it to the text.
  tensors.passed_over.insert(
      tensors.passed_over.end(),
      {"vision_tower.*", "mm_projector.*", "model.vision_tower.*", "model.mm_projector.*"});
  return tensors;
}

}  // namespace

Family kimi_k25_family() { return {"kimi_k25", read, write, tensors}; }

}  // namespace pronghorn
