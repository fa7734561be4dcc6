// The Granite family (arXiv 2408.13359): Llama with factors on embeddings, scores of attention,
// what layers add to the stream, and the scores of the model.
#include "model/families/granite.h"

#include <cmath>

#include "base/error.h"
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"

namespace pronghorn {

void read_granite_factors(ConfigReader& reader, Decoder& decoder) {
  constexpr double kLeast = 1e-9;  // of a factor that is divided by
  decoder.mixer["scale"] = reader.number("attention_multiplier", 1.0, kLeast);
  decoder.block = {{"residual_multiplier", reader.number("residual_multiplier", 1.0)}};
  decoder.settings["embedding_scale"] = reader.number("embedding_multiplier", 1.0);
  decoder.settings["logit_scale"] = 1 / reader.number("logits_scaling", 1.0, kLeast);
}

nlohmann::json write_granite_factors(const ModelConfig& config, const BlockConfig& block) {
  return {{"attention_multiplier", block.mixers.front().at("scale")},
          {"residual_multiplier", block.residual_multiplier},
          {"embedding_multiplier", config.embedding_scale},
          {"logits_scaling", divisor_of(config.logit_scale)}};
}

std::vector<GgufKey> gguf_granite_keys() {
  return {{"attention.scale", "attention_multiplier", GgufKind::f32, false},
          {"embedding_scale", "embedding_multiplier", GgufKind::f32, false},
          {"residual_scale", "residual_multiplier", GgufKind::f32, false},
          {"logit_scale", "logits_scaling", GgufKind::f32}};
}

void read_gguf_granite_scale(nlohmann::json& config) {
  if (config.contains("attention_multiplier")) return;
  config["attention_multiplier"] = 1 / std::sqrt(config.at("head_dim").get<double>());
}

void read_gguf_granite(const GgufModel& file, nlohmann::json& config) {
  read_gguf_attention(file, config);
  config["attention_bias"] = file.has("blk.0.attn_q.bias");
  read_gguf_granite_scale(config);
  // In these architectures the key says whether there are positions at all.
  const std::string turned = file.key("rope.scaling.finetuned");
  require(file.metadata.boolean(turned, true), file.metadata.path(turned),
          "false, no positions, is not supported");
}

namespace {

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {});
  read_attention_bias(reader, decoder);
  read_mlp_bias(reader, decoder);
  read_granite_factors(reader, decoder);
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = decoder_layers(config);
  if (layers.empty()) return {};
  nlohmann::json json = write_decoder(config, "granite", "GraniteForCausalLM");
  json["attention_bias"] = layers.front()->mixers.front().at("bias");
  json["mlp_bias"] = has_bias(layers.front()->feed_forward);
  json.update(write_granite_factors(config, *layers.front()));
  return json;
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_granite(file, config);
  read_gguf_biases(file, config);
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return gguf_decoder_tensors(config, {.rope_pairs = true, .biases = true, .rope_tables = true});
}

}  // namespace

Family granite_family() {
  static const GgufFormat gguf = {"granite",
                                  gguf_decoder_keys(gguf_granite_keys()),
                                  gguf_decoder_other_keys(),
                                  read_gguf,
                                  write_gguf_attention,
                                  gguf_tensors};
  return {"granite", read, write, decoder_tensors, &gguf};
}

}  // namespace pronghorn
