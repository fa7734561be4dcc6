#include "model/families/decoder.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "model/families/predictor.h"
#include "model/families/published_keys.h"

namespace pronghorn {
namespace {

// Published names of activations and ours; the first of several is written.
constexpr std::pair<std::string_view, std::string_view> kActivations[] = {
    {"silu", "silu"},          {"swish", "silu"},
    {"gelu", "gelu"},          {"gelu_pytorch_tanh", "gelu_tanh"},
    {"gelu_new", "gelu_tanh"}, {"gelu_fast", "gelu_tanh"},
    {"relu", "relu"},          {"relu2", "relu2"}};

}  // namespace

int64_t read_layer_count(ConfigReader& reader) {
  return reader.integer("num_hidden_layers", {}, 1, kMaxBlocks);
}

std::string read_activation(ConfigReader& reader, const std::string& key,
                            const std::string& fallback) {
  const std::string name = reader.string(key, fallback);
  std::vector<std::string_view> known;
  for (const auto& [theirs, ours] : kActivations) {
    if (name == theirs) return std::string(ours);
    known.push_back(theirs);
  }
  throw Error(reader.path(key), fmt::format("'{}' is not a known activation", name),
              fmt::format("known: {}", fmt::join(known, ", ")));
}

std::string write_activation(const std::string& ours) {
  const auto* found =
      std::ranges::find(kActivations, ours, [](const auto& pair) { return pair.second; });
  return found == std::end(kActivations) ? ours : std::string(found->first);
}

nlohmann::json gated_ffn(int64_t size, const std::string& activation, bool bias, bool norm) {
  if (activation == "silu" && !bias && !norm) return {{"type", "swiglu"}, {"size", size}};
  return {
      {"type", "glu"}, {"size", size}, {"activation", activation}, {"bias", bias}, {"norm", norm}};
}

nlohmann::json plain_ffn(int64_t size, const std::string& activation, bool bias) {
  if (activation == "gelu" || activation == "gelu_tanh") {
    return {{"type", "gelu"},
            {"size", size},
            {"bias", bias},
            {"approximate", activation == "gelu" ? "none" : "tanh"}};
  }
  return {{"type", "mlp"}, {"size", size}, {"activation", activation}, {"bias", bias}};
}

std::string activation_of(const nlohmann::json& ffn) {
  if (ffn.at("type") == "swiglu") return "silu";
  if (ffn.at("type") != "gelu") return ffn.at("activation");
  return ffn.at("approximate") == "tanh" ? "gelu_tanh" : "gelu";
}

bool has_bias(const nlohmann::json& ffn) { return ffn.value("bias", false); }

Decoder read_decoder(ConfigReader& reader, const DecoderDefaults& defaults) {
  // A null is what 0 is among the defaults.
  const auto size = [&](const std::string& key, int64_t absent, int64_t none) {
    if (absent == 0 || is_null(reader, key)) absent = none;
    return reader.integer(key, absent, 1);
  };
  Decoder decoder;
  decoder.layers = read_layer_count(reader);
  const int64_t heads = reader.integer("num_attention_heads", {}, 1);
  // Far above what a model may have, so that sizes that follow from it do not overflow.
  const int64_t hidden_size = reader.integer("hidden_size", {}, 1, 1 << 24);
  decoder.mixer = {{"type", "attention"},
                   {"heads", heads},
                   {"kv_heads", size("num_key_value_heads", defaults.kv_heads, heads)}};
  int64_t head_dim = size("head_dim", defaults.head_dim, 0);
  if (head_dim > 0) {
    decoder.mixer["head_dim"] = head_dim;
  } else {
    head_dim = hidden_size / heads;
  }
  if (defaults.rope.by_layer) {
    reader.ignore("max_position_embeddings");
  } else {
    decoder.mixer["rope"] = read_rope(reader, head_dim, defaults.rope);
  }
  decoder.size = defaults.size > 0 ? reader.integer("intermediate_size", defaults.size, 1)
                                   : reader.integer("intermediate_size", {}, 1);
  decoder.activation = read_activation(reader, defaults.activation_key, defaults.activation);
  decoder.settings = {
      {"vocab_size", reader.integer("vocab_size", {}, 1)},
      {"hidden_size", hidden_size},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", defaults.tied)},
      {"norm",
       {{"type", "rms_norm"}, {"epsilon", reader.number("rms_norm_eps", defaults.epsilon, 0)}}}};
  return decoder;
}

void read_attention_bias(ConfigReader& reader, Decoder& decoder, bool fallback) {
  const bool bias = reader.boolean("attention_bias", fallback);
  decoder.mixer["bias"] = decoder.mixer["output_bias"] = bias;
}

void read_mlp_bias(ConfigReader& reader, Decoder& decoder) {
  decoder.mlp_bias = reader.boolean("mlp_bias", false);
}

void read_no_bias(ConfigReader& reader) {
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    require(!reader.boolean(key, false), reader.path(key), "true is not what this family has");
  }
}

void read_window(ConfigReader& reader, Decoder& decoder, int64_t fallback) {
  const int64_t absent = is_null(reader, "sliding_window") ? 0 : fallback;
  decoder.mixer["window"] = reader.integer("sliding_window", absent, 1);
}

ModelConfig Decoder::finish(
    const ConfigReader& reader,
    const std::function<void(int64_t layer, nlohmann::json& mixer)>& change) const {
  return finish_layers(reader, [&](int64_t layer, nlohmann::json& whole) {
    if (change) change(layer, whole["mixer"]);
  });
}

ModelConfig Decoder::finish_layers(
    const ConfigReader& reader,
    const std::function<void(int64_t layer, nlohmann::json& block)>& change) const {
  nlohmann::json whole = settings;
  read_trained_context(reader, whole);
  finish_published(reader);
  std::vector<nlohmann::json> all;
  for (int64_t i = 0; i < layers; ++i) {
    nlohmann::json layer = block;
    layer["mixer"] = mixer;
    if (experts) layer["ffn"] = experts(i);
    if (layer["ffn"].is_null()) {
      layer["ffn"] = gated ? gated_ffn(size, activation, mlp_bias, ffn_norm)
                           : plain_ffn(size, activation, mlp_bias);
    }
    if (!bits.empty()) layer["ffn"]["bits"] = bits;
    change(i, layer);
    all.push_back(std::move(layer));
  }
  ModelConfig config = layered_config(reader, std::move(whole), all);
  add_predictors(config, predictors);
  return config;
}

std::vector<const BlockConfig*> decoder_layers(const ModelConfig& config) {
  const std::vector<const BlockConfig*> blocks = layer_blocks(config);
  for (const BlockConfig* block : blocks) {
    if (block->mixers.size() != 1 || block->mixers.front().at("type") != "attention") return {};
    if (!is_decoder_ffn(block->feed_forward)) return {};
  }
  return blocks;
}

bool is_decoder_ffn(const nlohmann::json& ffn) {
  return !ffn.is_null() &&
         (ffn.at("type") == "swiglu" || ffn.at("type") == "glu" || ffn.at("type") == "gelu" ||
          ffn.at("type") == "mlp" || ffn.at("type") == "moe");
}

nlohmann::json write_decoder(const ModelConfig& config, const std::string& model_type,
                             const std::string& architecture, const std::string& activation_key) {
  return write_decoder(config, decoder_layers(config), model_type, architecture, activation_key);
}

nlohmann::json write_decoder(const ModelConfig& config,
                             const std::vector<const BlockConfig*>& layers,
                             const std::string& model_type, const std::string& architecture,
                             const std::string& activation_key) {
  const BlockConfig& block = *layers.front();
  const nlohmann::json& mixer = block.mixers.front();
  nlohmann::json json = {{"model_type", model_type},
                         {"architectures", {architecture}},
                         {"vocab_size", config.vocab_size},
                         {"hidden_size", config.hidden_size},
                         {"num_hidden_layers", config.block_count()},
                         {"num_attention_heads", mixer.at("heads")},
                         {"num_key_value_heads", mixer.at("kv_heads")},
                         {"head_dim", mixer.at("head_dim")},
                         {"intermediate_size", block.feed_forward.at("size")},
                         {activation_key, write_activation(activation_of(block.feed_forward))},
                         {"rms_norm_eps", config.norm_epsilon},
                         {"tie_word_embeddings", config.tie_embeddings},
                         {"torch_dtype", "float32"}};
  json.update(write_trained_context(config));
  // That of the first layer that is turned; expresses() finds layers that differ.
  for (const BlockConfig* layer : layers) {
    const nlohmann::json& rope = layer->mixers.front().at("rope");
    if (rope.is_null()) continue;
    json.update(write_rope(rope, mixer.at("head_dim"), config.context));
    break;
  }
  return json;
}

TensorRules decoder_tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "model.layers.*.";
  TensorRules tensors;
  tensors.rules = {
      {{"embeddings.weight"}, {"model.embed_tokens.weight"}, {}},
      {{layer + "mixer_norm.*"}, {theirs + "input_layernorm.*"}, {}},
      {{layer + "mixer.*"}, {theirs + "self_attn.*"}, {}},
      {{layer + "ffn_norm.*"}, {theirs + "post_attention_layernorm.*"}, {}},
      {{layer + "ffn.*"}, {theirs + "mlp.*"}, {}},
      {{"norm.*"}, {"model.norm.*"}, {}},
      {{"lm_head.weight"}, {"lm_head.weight"}, {}},
  };
  tensors.passed_over = tied_head(config, "lm_head.weight");
  // Older tools stored the angles, which follow from the configuration.
  tensors.passed_over.push_back(theirs + "self_attn.rotary_emb.inv_freq");
  return tensors;
}

std::vector<bool> read_sliding_layers(ConfigReader& reader, int64_t layers,
                                      const std::function<bool(int64_t)>& fallback) {
  std::vector<bool> sliding;
  if (!reader.has("layer_types")) {
    reader.ignore("layer_types");
    for (int64_t i = 0; i < layers; ++i) sliding.push_back(fallback(i));
    return sliding;
  }
  const nlohmann::json& types = reader.raw("layer_types");
  require(types.is_array() && std::ssize(types) == layers, reader.path("layer_types"),
          "must be a list with one entry for each of {} layers", layers);
  for (const nlohmann::json& type : types) {
    sliding.push_back(type == "sliding_attention");
    require(sliding.back() || type == "full_attention", reader.path("layer_types"),
            "{} is neither \"full_attention\" nor \"sliding_attention\"", type.dump());
  }
  return sliding;
}

std::vector<int64_t> read_layer_windows(ConfigReader& reader) {
  // The defaults of the reference; an explicit null is no window.
  constexpr int64_t kWindow = 4096, kFirst = 28;
  int64_t window =
      reader.integer("sliding_window", is_null(reader, "sliding_window") ? 0 : kWindow, 1);
  if (!reader.boolean("use_sliding_window", false)) window = 0;
  const int64_t first = reader.integer("max_window_layers", kFirst, 0);
  std::vector<int64_t> windows;
  for (const bool sliding : read_sliding_layers(
           reader, read_layer_count(reader), [&](int64_t i) { return window > 0 && i >= first; })) {
    require(!sliding || window > 0, reader.path("layer_types"),
            "\"sliding_attention\" without use_sliding_window and sliding_window");
    windows.push_back(sliding ? window : 0);
  }
  return windows;
}

std::vector<int64_t> layer_windows(const ModelConfig& config) {
  std::vector<int64_t> windows;
  for (const BlockConfig* block : decoder_layers(config)) {
    windows.push_back(block->mixers.front().at("window"));
  }
  return windows;
}

nlohmann::json write_layer_types(const std::vector<int64_t>& windows) {
  nlohmann::json types = nlohmann::json::array();
  for (const int64_t window : windows) {
    types.push_back(window == 0 ? "full_attention" : "sliding_attention");
  }
  return types;
}

nlohmann::json write_layer_windows(const std::vector<int64_t>& windows) {
  const int64_t window = *std::ranges::max_element(windows);
  if (window == 0) return {{"use_sliding_window", false}};
  return {{"use_sliding_window", true},
          {"sliding_window", window},
          {"max_window_layers", std::ranges::find(windows, window) - windows.begin()},
          {"layer_types", write_layer_types(windows)}};
}

}  // namespace pronghorn
