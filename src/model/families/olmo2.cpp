// The OLMo 2 family (arXiv 2501.00656): norms after attention and feed-forward in place of those
// before, and of all query heads and all key heads together.
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {.epsilon = 1e-5});
  read_attention_bias(reader, decoder);
  decoder.mixer["qk_norm"] = true;
  decoder.mixer["qk_norm_over"] = "projection";
  decoder.block = {{"norms", "after"}};
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = decoder_layers(config);
  if (layers.empty()) return {};
  nlohmann::json json = write_decoder(config, "olmo2", "Olmo2ForCausalLM");
  json["attention_bias"] = layers.front()->mixers.front().at("bias");
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "model.layers.*.";
  TensorRules tensors = decoder_tensors(config);
  const std::vector<TensorRule> norms = {
      {{layer + "mixer_post_norm.*"}, {theirs + "post_attention_layernorm.*"}, {}},
      {{layer + "ffn_post_norm.*"}, {theirs + "post_feedforward_layernorm.*"}, {}}};
  tensors.rules.insert(tensors.rules.begin(), norms.begin(), norms.end());
  return tensors;
}

TensorRules gguf_tensors(const ModelConfig& config) { return gguf_decoder_tensors(config, {}); }

}  // namespace

Family olmo2_family() {
  static const GgufFormat gguf = {"olmo2",
                                  gguf_decoder_keys(),
                                  gguf_decoder_other_keys(),
                                  read_gguf_attention,
                                  write_gguf_attention,
                                  gguf_tensors,
                                  false};
  return {"olmo2", read, write, tensors, &gguf};
}

}  // namespace pronghorn
