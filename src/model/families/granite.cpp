// The Granite family (arXiv 2408.13359): Llama with factors on embeddings, scores of attention,
// what layers add to the stream, and the scores of the model.
#include "model/families.h"
#include "model/families/decoder.h"

namespace pronghorn {
namespace {

constexpr double kLeast = 1e-9;  // of a factor that is divided by

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {});
  read_attention_bias(reader, decoder);
  read_mlp_bias(reader, decoder);
  decoder.mixer["scale"] = reader.number("attention_multiplier", 1.0, kLeast);
  decoder.block = {{"residual_multiplier", reader.number("residual_multiplier", 1.0)}};
  decoder.settings["embedding_scale"] = reader.number("embedding_multiplier", 1.0);
  decoder.settings["logit_scale"] = 1 / reader.number("logits_scaling", 1.0, kLeast);
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = decoder_layers(config);
  if (layers.empty()) return {};
  nlohmann::json json = write_decoder(config, "granite", "GraniteForCausalLM");
  const nlohmann::json& mixer = layers.front()->mixers.front();
  json["attention_bias"] = mixer.at("bias");
  json["mlp_bias"] = has_bias(layers.front()->feed_forward);
  json["attention_multiplier"] = mixer.at("scale");
  json["residual_multiplier"] = layers.front()->residual_multiplier;
  json["embedding_multiplier"] = config.embedding_scale;
  json["logits_scaling"] = divisor_of(config.logit_scale);
  return json;
}

}  // namespace

Family granite_family() { return {"granite", read, write, decoder_tensors}; }

}  // namespace pronghorn
