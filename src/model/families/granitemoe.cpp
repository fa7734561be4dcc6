// The Granite family with experts (Granite 3.0 to 3.3, arXiv 2408.13359): its factors, and a
// softmax over the chosen experts, whose matrices are in one tensor.
#include "model/families.h"
#include "model/families/gguf_decoder.h"
#include "model/families/gguf_experts.h"
#include "model/families/granite.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

constexpr const char* kCount = "num_local_experts";

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {});
  read_attention_bias(reader, decoder);
  read_granite_factors(reader, decoder);
  read_experts(reader, decoder, {kCount, 8, 2}, {});
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = mixture_layers(config);
  if (layers.empty()) return {};
  nlohmann::json json = write_mixture(config, "granitemoe", "GraniteMoeForCausalLM", kCount);
  json["attention_bias"] = layers.front()->mixers.front().at("bias");
  json.update(write_granite_factors(config, *layers.front()));
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  return with_rules(decoder_tensors(config), granite_expert_rules(config));
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  require_gguf_softmax(file);
  read_gguf_granite(file, config);
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return with_gguf_experts(
      gguf_decoder_tensors(config, {.rope_pairs = true, .biases = true, .rope_tables = true}),
      config);
}

}  // namespace

std::vector<TensorRule> granite_expert_rules(const ModelConfig& config) {
  const std::string theirs = "model.layers.*.block_sparse_moe.";
  std::vector<TensorRule> rules =
      stacked_experts(config, theirs + "input_linear.weight", theirs + "output_linear.weight");
  rules.push_back({{"layers.*.ffn.gate.*"}, {theirs + "router.layer.*"}, {}});
  return rules;
}

Family granitemoe_family() {
  static const GgufFormat gguf = {"granitemoe",
                                  gguf_mixture_keys(kCount, gguf_granite_keys()),
                                  gguf_mixture_other_keys(),
                                  read_gguf,
                                  write_gguf_attention,
                                  gguf_tensors};
  return {"granitemoe", read, write, tensors, &gguf};
}

}  // namespace pronghorn
