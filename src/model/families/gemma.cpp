#include "model/families/gemma.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/float16.h"

namespace pronghorn {
namespace {

// Ours: the reference does not say the factor, which it holds in the type of the weights. So a
// model that was trained in bf16 has a rounded one, and we keep that when we write other types.
constexpr const char* kScaleKey = "embedding_scale";

double embedding_scale(ConfigReader& reader, int64_t hidden_size) {
  const double root = std::sqrt(static_cast<double>(hidden_size));
  const std::string type = reader.string("dtype", reader.string("torch_dtype", "float32"));
  const float rounded = from_bf16(to_bf16(static_cast<float>(root)));
  return reader.number(kScaleKey, type == "bfloat16" ? static_cast<double>(rounded) : root, 0);
}

}  // namespace

double read_cap(ConfigReader& reader, const std::string& key, double absent) {
  return reader.number(key, is_null(reader, key) ? 0.0 : absent, 0);
}

nlohmann::json write_cap(double cap) {
  return cap == 0 ? nlohmann::json(nullptr) : nlohmann::json(cap);
}

Decoder read_gemma(ConfigReader& reader, const DecoderDefaults& defaults) {
  Decoder decoder = read_decoder(reader, defaults);
  read_attention_bias(reader, decoder);
  decoder.mixer["scale"] = 1 / std::sqrt(reader.number("query_pre_attn_scalar", 256.0, 1e-6));
  require(!reader.boolean("use_bidirectional_attention", false),
          reader.path("use_bidirectional_attention"), "true is not supported");
  decoder.settings["embedding_scale"] = embedding_scale(reader, decoder.settings.at("hidden_size"));
  decoder.block = {{"norms", "both"}};
  return decoder;
}

nlohmann::json write_gemma(const ModelConfig& config, const std::string& model_type,
                           const std::string& architecture) {
  nlohmann::json json = write_decoder(config, model_type, architecture, "hidden_activation");
  const nlohmann::json& mixer = decoder_layers(config).front()->mixers.front();
  const auto scale = mixer.at("scale").get<double>();
  // Whole numbers only, which the reference asks for.
  if (scale > 0) json["query_pre_attn_scalar"] = std::llround(1 / (scale * scale));
  json["attention_bias"] = mixer.at("bias");
  json["final_logit_softcapping"] = write_cap(config.logit_soft_cap);
  json[kScaleKey] = config.embedding_scale;
  const std::vector<int64_t> windows = layer_windows(config);
  json["layer_types"] = write_layer_types(windows);
  if (const int64_t window = *std::ranges::max_element(windows); window > 0) {
    json["sliding_window"] = window;
  }
  return json;
}

TensorRules gemma_tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "model.layers.*.";
  const Transform less_one = transforms::plus(1);
  TensorRules tensors = decoder_tensors(config);
  const std::vector<TensorRule> norms = {
      {{layer + "mixer_norm.*"}, {theirs + "input_layernorm.*"}, less_one},
      {{layer + "mixer_post_norm.*"}, {theirs + "post_attention_layernorm.*"}, less_one},
      {{layer + "ffn_norm.*"}, {theirs + "pre_feedforward_layernorm.*"}, less_one},
      {{layer + "ffn_post_norm.*"}, {theirs + "post_feedforward_layernorm.*"}, less_one},
      {{layer + "mixer.*_norm.weight"}, {theirs + "self_attn.*_norm.weight"}, less_one},
      {{"norm.*"}, {"model.norm.*"}, less_one}};
  tensors.rules.insert(tensors.rules.begin(), norms.begin(), norms.end());
  return tensors;
}

std::vector<GgufKey> gemma_gguf_keys(const GgufKey& own) {
  return gguf_decoder_keys(
      {{"attention.sliding_window", "sliding_window", GgufKind::u32, false},
       {"final_logit_softcapping", "final_logit_softcapping", GgufKind::f32, false},
       own});
}

std::vector<std::string_view> gemma_gguf_other_keys() {
  std::vector<std::string_view> keys = gguf_decoder_other_keys();
  keys.insert(keys.end(), {"attention.sliding_window_pattern", kScaleKey});
  return keys;
}

void read_gemma_gguf(const GgufModel& file, int64_t largest, int64_t period,
                     nlohmann::json& config) {
  read_gguf_attention(file, config);
  read_gguf_windows(file, period, config);
  const std::string scale = file.key(kScaleKey);
  if (file.metadata.has(scale)) config[kScaleKey] = decimal_number(file.metadata.number(scale));
  const auto width = config.at("hidden_size").get<double>();
  const auto heads = config.at("num_attention_heads").get<double>();
  const bool by_width = config.at("num_hidden_layers") == largest;
  config["query_pre_attn_scalar"] =
      by_width ? std::floor(width / heads) : config.at("head_dim").get<double>();
}

void write_gemma_gguf(const ModelConfig& config, const nlohmann::json& json, int64_t period,
                      GgufModel& file) {
  // llama.cpp takes the exact root, whatever type the weights were trained in; more than that
  // rounding it cannot do without.
  constexpr double kRounding = 1.0 / 256, kNone = 1e-6;
  const double root = std::sqrt(static_cast<double>(config.hidden_size));
  const double off = std::abs(config.embedding_scale / root - 1);
  require(off <= kRounding, file.metadata.where(), "cannot say {} = {}", kScaleKey,
          config.embedding_scale);
  if (off > kNone) {
    file.metadata.set(file.key(kScaleKey),
                      GgufValue::f32(static_cast<float>(config.embedding_scale)));
  }
  write_gguf_attention(config, json, file);
  write_gguf_windows(json, period, file);
}

TensorRules gemma_gguf_tensors(const ModelConfig& config) {
  return gguf_decoder_tensors(config, {});
}

}  // namespace pronghorn
