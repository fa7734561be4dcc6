#include "model/families/fla.h"

#include <cmath>

#include "base/error.h"
#include "model/families/decoder.h"
#include "model/families/hybrid.h"
#include "model/families/published_keys.h"

namespace pronghorn {

ModelConfig FlaDecoder::finish(const ConfigReader& reader, const nlohmann::json& mixer) const {
  nlohmann::json whole = settings;
  read_trained_context(reader, whole);
  finish_published(reader);
  return uniform_config(reader, whole, {{"mixer", mixer}, {"ffn", ffn}}, layers);
}

FlaDecoder read_fla_decoder(ConfigReader& reader, int64_t heads, int64_t hidden_ratio) {
  FlaDecoder decoder;
  decoder.layers = read_layer_count(reader);
  decoder.hidden_size = reader.integer("hidden_size", 2048, 1, 1 << 17);
  if (heads > 0) decoder.heads = reader.integer("num_heads", heads, 1, 1 << 16);
  const int64_t ratio = reader.integer("hidden_ratio", hidden_ratio, 1, 64);
  // As the reference chooses it: two thirds of the ratio, rounded up to a multiple of 256.
  const int64_t size = (decoder.hidden_size * ratio * 2 / 3 + 255) / 256 * 256;
  decoder.ffn = gated_ffn(reader.integer("intermediate_size", size, 1), "silu", false, false);
  reader.one_of("hidden_act", {"swish", "silu"}, "swish");  // gates have it too
  decoder.settings = {
      {"vocab_size", reader.integer("vocab_size", 32000, 1)},
      {"hidden_size", decoder.hidden_size},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", false)},
      {"norm", {{"type", "rms_norm"}, {"epsilon", reader.number("norm_eps", 1e-6, 0)}}}};
  require(!reader.has("attn"), reader.path("attn"),
          "layers of attention are not supported in this family");
  require_fla(reader, "elementwise_affine", true);
  require_fla(reader, "conv_bias", false);
  require(!reader.has("attnres_block_size"), reader.path("attnres_block_size"),
          "residuals by attention are not supported");
  reader.ignore("attnres_block_size");
  for (const char* key : {"attn", "attn_mode", "fuse_linear_cross_entropy", "use_l2warp"}) {
    reader.ignore(key);
  }
  return decoder;
}

int64_t read_expanded_head(ConfigReader& reader, const std::string& key, double fallback,
                           const FlaDecoder& decoder) {
  const double expand = reader.number(key, fallback, 1e-3, 64);
  const double width = expand * static_cast<double>(decoder.hidden_size);
  const int64_t columns = std::llround(width);
  require(std::abs(width - static_cast<double>(columns)) < 1e-6 * width &&
              columns % decoder.heads == 0 && columns > 0,
          reader.path(key), "{} x hidden_size {} is not a multiple of num_heads {}", expand,
          decoder.hidden_size, decoder.heads);
  return columns / decoder.heads;
}

int64_t read_fla_taps(ConfigReader& reader, bool fallback) {
  const bool used = reader.boolean("use_short_conv", fallback);
  const int64_t taps = reader.integer("conv_size", 4, 1);
  return used ? taps : 0;
}

void require_fla(ConfigReader& reader, const std::string& key, bool value) {
  require(reader.boolean(key, value) == value, reader.path(key), "{} is not supported", !value);
}

const nlohmann::json* fla_mixer(const ModelConfig& config, const std::string& type) {
  const BlockConfig* block = uniform_block(config, type);
  const bool fits = block != nullptr && is_decoder_ffn(block->feed_forward) &&
                    block->feed_forward.at("type") == "swiglu";
  return fits ? &block->mixers.front() : nullptr;
}

nlohmann::json write_fla_decoder(const ModelConfig& config, const std::string& model_type,
                                 const std::string& architecture) {
  const BlockConfig& block = *layer_blocks(config).front();
  nlohmann::json json = {{"model_type", model_type},
                         {"architectures", {architecture}},
                         {"vocab_size", config.vocab_size},
                         {"hidden_size", config.hidden_size},
                         {"num_hidden_layers", config.block_count()},
                         {"intermediate_size", block.feed_forward.at("size")},
                         {"hidden_act", "swish"},
                         {"norm_eps", config.norm_epsilon},
                         {"tie_word_embeddings", config.tie_embeddings},
                         {"torch_dtype", "float32"}};
  json.update(write_trained_context(config));
  return json;
}

double fla_expansion(const ModelConfig& config, const nlohmann::json& mixer,
                     const std::string& width) {
  const int64_t columns = mixer.at("heads").get<int64_t>() * mixer.at(width).get<int64_t>();
  return static_cast<double>(columns) / static_cast<double>(config.hidden_size);
}

void write_fla_taps(const nlohmann::json& mixer, nlohmann::json& json) {
  const int64_t taps = mixer.at("conv_kernel");
  json["use_short_conv"] = taps > 0;
  if (taps > 0) json["conv_size"] = taps;
}

TensorRules fla_tensors(const ModelConfig& config, const std::vector<TensorRule>& rules,
                        const std::vector<TensorRule>& whole) {
  const std::string layer = "layers.*.", theirs = "model.layers.*.";
  TensorRules tensors;
  tensors.rules = whole;
  for (TensorRule rule : rules) {
    for (std::string& name : rule.ours) name = layer + "mixer." + name;
    for (std::string& name : rule.published) name = theirs + "attn." + name;
    tensors.rules.push_back(std::move(rule));
  }
  const std::vector<TensorRule> rest = {{{"embeddings.weight"}, {"model.embeddings.weight"}, {}},
                                        {{layer + "mixer_norm.*"}, {theirs + "attn_norm.*"}, {}},
                                        {{layer + "ffn_norm.*"}, {theirs + "mlp_norm.*"}, {}},
                                        {{layer + "mixer.*"}, {theirs + "attn.*"}, {}},
                                        {{layer + "ffn.*"}, {theirs + "mlp.*"}, {}},
                                        {{"norm.*"}, {"model.norm.*"}, {}},
                                        {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  tensors.rules.insert(tensors.rules.end(), rest.begin(), rest.end());
  tensors.passed_over = tied_head(config, "lm_head.weight");
  return tensors;
}

void require_own_keys(ConfigReader& reader, const FlaDecoder& decoder) {
  const int64_t kv_heads = reader.integer("num_kv_heads", decoder.heads, 1);
  require(kv_heads == decoder.heads, reader.path("num_kv_heads"),
          "{} for {} heads: shared keys are not supported", kv_heads, decoder.heads);
}

nlohmann::json read_fla_value_heads(ConfigReader& reader, const FlaDecoder& decoder,
                                    int64_t head_dim, double expand) {
  head_dim = reader.integer("head_dim", head_dim, 1, 1 << 16);
  const double width = reader.number("expand_v", expand, 1e-3, 64) * static_cast<double>(head_dim);
  require(width == std::floor(width), reader.path("expand_v"), "x head_dim {} is not whole",
          head_dim);
  return {{"heads", decoder.heads},
          {"head_dim", head_dim},
          {"value_heads", reader.integer("num_v_heads", decoder.heads, 1)},
          {"value_head_dim", std::llround(width)}};
}

void write_fla_value_heads(const nlohmann::json& mixer, nlohmann::json& json) {
  json["num_heads"] = mixer.at("heads");
  json["head_dim"] = mixer.at("head_dim");
  json["num_v_heads"] = mixer.at("value_heads");
  json["expand_v"] = mixer.at("value_head_dim").get<double>() / mixer.at("head_dim").get<double>();
}

TensorRules fla_gated_tensors(const ModelConfig& config, const std::string& type,
                              std::vector<TensorRule> rules) {
  const nlohmann::json* mixer = fla_mixer(config, type);
  if (mixer == nullptr || mixer->at("gate") != "silu") return fla_tensors(config, rules);
  rules.push_back({{"g_norm.weight"}, {"g_norm_swish_gate.weight"}, {}});
  TensorRules tensors = fla_tensors(config, rules);
  tensors.aliases = {
      {"model.layers.*.attn.g_norm_swish_gate.weight", "model.layers.*.attn.g_norm.weight"}};
  return tensors;
}

std::vector<TensorRule> fla_convolutions() {
  return {convolution_rule("q_conv1d.weight"), convolution_rule("k_conv1d.weight"),
          convolution_rule("v_conv1d.weight")};
}

}  // namespace pronghorn
