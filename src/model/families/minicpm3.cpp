// The MiniCPM3 family: multi-head latent attention in a dense decoder, with factors on embeddings,
// on what layers add to the stream, and on the scores.
#include <cmath>

#include "model/families.h"
#include "model/families/gguf_decoder.h"
#include "model/families/gguf_mla.h"
#include "model/families/mla_keys.h"

namespace pronghorn {
namespace {

constexpr double kLeast = 1e-9;  // of a factor that is divided by

// A factor whose null means what makes it 1.
double factor_or(ConfigReader& reader, const std::string& key, double absent, double none) {
  return reader.number(key, is_null(reader, key) ? none : absent, kLeast);
}

ModelConfig read(ConfigReader reader) {
  MlaDefaults defaults;
  defaults.query_rank = 768;
  defaults.latent = 256;
  defaults.head_dim = 64;
  defaults.rope_dim = 32;
  Decoder decoder = read_mla_decoder(reader, defaults, {.epsilon = 1e-5, .tied = true});
  read_mlp_bias(reader, decoder);
  const auto hidden = decoder.settings.at("hidden_size").get<double>();
  const auto depth = static_cast<double>(decoder.layers);
  decoder.settings["embedding_scale"] = reader.number("scale_emb", 12.0);
  decoder.settings["logit_scale"] = factor_or(reader, "dim_model_base", 256, hidden) / hidden;
  const double scale = factor_or(reader, "scale_depth", 1.4, std::sqrt(depth));
  decoder.block = {{"residual_multiplier", scale / std::sqrt(depth)}};
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  std::optional<nlohmann::json> json = write_mla_decoder(config, "minicpm3", "MiniCPM3ForCausalLM");
  if (!json) return {};
  const BlockConfig& block = *layer_blocks(config).front();
  (*json)["mlp_bias"] = has_bias(block.feed_forward);
  (*json)["scale_emb"] = config.embedding_scale;
  (*json)["dim_model_base"] =
      std::llround(config.logit_scale * static_cast<double>(config.hidden_size));
  // The factor that is read again must be the same number.
  const double root = std::sqrt(static_cast<double>(config.block_count()));
  double scale = block.residual_multiplier * root;
  for (const double near : {std::round(scale * 1e6) / 1e6, std::nextafter(scale, 0.0),
                            std::nextafter(scale, 2 * scale)}) {
    if (near / root == block.residual_multiplier) scale = near;
  }
  (*json)["scale_depth"] = scale;
  return json;
}

TensorRules tensors(const ModelConfig& config) { return mla_decoder_tensors(config); }

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  const nlohmann::json& mixer = layer_blocks(config).front()->mixers.front();
  const auto set = [&](const char* key, int64_t value) {
    file.metadata.set(file.key(key), GgufValue::u32(static_cast<uint32_t>(value)));
  };
  const auto rotary = mixer.at("rope_dim").get<int64_t>();
  set("attention.head_count_kv", mixer.at("heads"));
  set("attention.key_length", mixer.at("head_dim").get<int64_t>() + rotary);
  set("attention.value_length", mixer.at("value_dim"));
  set("rope.dimension_count", rotary);
  set("vocab_size", json.at("vocab_size"));
  write_gguf_rope(mixer.at("rope"), 0, file);
  // llama.cpp looks for the two tables only.
  const auto both = file.tables.extract("rope_freqs.weight");
  if (both.empty()) return;
  file.tables["rope_factors_short.weight"] = file.tables["rope_factors_long.weight"] =
      both.mapped();
}

TensorRules gguf_tensors(const ModelConfig& config) {
  TensorRules tensors = gguf_mla_tensors(config, true);
  tensors.passed_over.emplace_back("rope_factors_*.weight");
  return tensors;
}

}  // namespace

Family minicpm3_family() {
  static const GgufFormat gguf = {"minicpm3",    gguf_mla_keys(), gguf_mla_other_keys(),
                                  read_gguf_mla, write_gguf,      gguf_tensors};
  return {"minicpm3", read, write, tensors, &gguf};
}

}  // namespace pronghorn
