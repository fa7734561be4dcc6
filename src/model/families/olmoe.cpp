// The OLMoE family (arXiv 2409.02060): small experts, and norms of all query heads and all key
// heads together.
#include "model/families.h"
#include "model/families/gguf_decoder.h"
#include "model/families/gguf_experts.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

constexpr const char* kCount = "num_experts";

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {.epsilon = 1e-5});
  read_attention_bias(reader, decoder);
  decoder.mixer["qk_norm"] = true;
  decoder.mixer["qk_norm_over"] = "projection";
  read_experts(reader, decoder, {kCount, 64, 8},
               {{"normalize", reader.boolean("norm_topk_prob", false)}});
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  if (mixture_layers(config).empty()) return {};
  nlohmann::json json = write_mixture(config, "olmoe", "OlmoeForCausalLM", kCount);
  json["attention_bias"] = mixture_layers(config).front()->mixers.front().at("bias");
  json["norm_topk_prob"] = experts_of(config).at("normalize");
  return json;
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return with_gguf_experts(gguf_decoder_tensors(config, {}), config);
}

}  // namespace

Family olmoe_family() {
  static const GgufFormat gguf = {"olmoe",
                                  gguf_mixture_keys(kCount),
                                  gguf_mixture_other_keys(),
                                  read_gguf_softmax_experts,
                                  write_gguf_attention,
                                  gguf_tensors,
                                  false};
  return {"olmoe", read, write, decoder_tensors, &gguf};
}

}  // namespace pronghorn
