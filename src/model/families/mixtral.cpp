// The Mixtral family (arXiv 2401.04088): Mistral with experts, a softmax over the chosen ones.
#include "model/families.h"
#include "model/families/gguf_decoder.h"
#include "model/families/gguf_experts.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

constexpr const char* kCount = "num_local_experts";

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {.kv_heads = 8, .epsilon = 1e-5, .rope = {.theta = 1e6}});
  read_no_bias(reader);
  read_window(reader, decoder, 0);
  read_experts(reader, decoder, {kCount, 8, 2}, {});
  reader.ignore("router_jitter_noise");  // of training
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  if (mixture_layers(config).empty()) return {};
  nlohmann::json json = write_mixture(config, "mixtral", "MixtralForCausalLM", kCount);
  const int64_t window = layer_windows(config).front();
  json["sliding_window"] = nullptr;
  if (window > 0) json["sliding_window"] = window;
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.ffn.", theirs = "model.layers.*.block_sparse_moe.";
  return with_rules(decoder_tensors(config),
                    {{{layer + "experts.*.gate_proj.*"}, {theirs + "experts.*.w1.*"}, {}},
                     {{layer + "experts.*.down_proj.*"}, {theirs + "experts.*.w2.*"}, {}},
                     {{layer + "experts.*.up_proj.*"}, {theirs + "experts.*.w3.*"}, {}},
                     {{layer + "gate.*"}, {theirs + "gate.*"}, {}}});
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return with_gguf_experts(gguf_decoder_tensors(config, {.rope_pairs = true, .rope_tables = true}),
                           config);
}

}  // namespace

Family mixtral_family() {
  static const GgufFormat gguf = {"llama",
                                  gguf_mixture_keys(kCount),
                                  gguf_mixture_other_keys(),
                                  read_gguf_softmax_experts,
                                  write_gguf_attention,
                                  gguf_tensors};
  return {"mixtral", read, write, tensors, &gguf};
}

}  // namespace pronghorn
