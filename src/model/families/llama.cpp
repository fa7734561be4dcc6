// The Llama family (arXiv 2302.13971, 2307.09288, 2407.21783): RMSNorm, rotary grouped-query
// attention, SwiGLU.
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"
#include "model/families/gguf_experts.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {});
  read_attention_bias(reader, decoder);
  read_mlp_bias(reader, decoder);
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = decoder_layers(config);
  if (layers.empty()) return {};
  nlohmann::json json = write_decoder(config, "llama", "LlamaForCausalLM");
  json["attention_bias"] = layers.front()->mixers.front().at("bias");
  json["mlp_bias"] = has_bias(layers.front()->feed_forward);
  return json;
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_attention(file, config);
  read_gguf_biases(file, config);
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return gguf_decoder_tensors(config, {.rope_pairs = true, .biases = true, .rope_tables = true});
}

}  // namespace

Family llama_family() {
  static const GgufFormat gguf = {"llama",   gguf_decoder_keys(),  gguf_decoder_other_keys(),
                                  read_gguf, write_gguf_attention, gguf_tensors,
                                  {},        gguf_without_experts};
  return {"llama", read, write, decoder_tensors, &gguf};
}

}  // namespace pronghorn
