#include "model/families/decoder.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "model/families/published_keys.h"

namespace pronghorn {
namespace {

// Newer files keep the rotary settings in an object of their own.
double read_rope_theta(ConfigReader& reader) {
  double theta = 10000;
  if (reader.has("rope_parameters")) {
    ConfigReader rope = reader.object("rope_parameters");
    rope.one_of("rope_type", {"default"}, "default");
    theta = rope.number("rope_theta", theta, 1.0);
    finish_published(rope);
  }
  reader.ignore("rope_parameters");
  return reader.number("rope_theta", theta, 1.0);
}

}  // namespace

int64_t read_layer_count(ConfigReader& reader) {
  return reader.integer("num_hidden_layers", {}, 1, kMaxBlocks);
}

ModelConfig read_decoder(ConfigReader reader, const DecoderTraits& traits,
                         const DecoderDefaults& defaults) {
  // A null is what 0 is among the defaults.
  const auto size = [&](const std::string& key, int64_t absent, int64_t none) {
    if (absent == 0 || is_null(reader, key)) absent = none;
    return reader.integer(key, absent, 1);
  };
  const int64_t heads = reader.integer("num_attention_heads", {}, 1);
  nlohmann::json mixer = {{"type", "attention"},
                          {"heads", heads},
                          {"kv_heads", size("num_key_value_heads", defaults.kv_heads, heads)},
                          {"bias", traits.bias},
                          {"qk_norm", traits.qk_norm},
                          {"rope", {{"theta", read_rope_theta(reader)}}}};
  if (const int64_t head_dim = size("head_dim", defaults.head_dim, 0); head_dim > 0) {
    mixer["head_dim"] = head_dim;
  }
  const nlohmann::json ffn = {{"type", "swiglu"},
                              {"size", reader.integer("intermediate_size", {}, 1)}};
  nlohmann::json settings = {
      {"vocab_size", reader.integer("vocab_size", {}, 1)},
      {"hidden_size", reader.integer("hidden_size", {}, 1)},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", false)},
      {"norm", {{"type", "rms_norm"}, {"epsilon", reader.number("rms_norm_eps", 1e-6, 0)}}}};
  read_trained_context(reader, settings);
  finish_published(reader);
  std::vector<nlohmann::json> layers;
  for (const int64_t window : traits.windows) {
    mixer["window"] = window;
    layers.push_back({{"mixer", mixer}, {"ffn", ffn}});
  }
  return layered_config(reader, settings, layers);
}

std::vector<int64_t> decoder_windows(const ModelConfig& config) {
  std::vector<int64_t> windows;
  for (const BlockConfig* block : layer_blocks(config)) {
    const nlohmann::json& mixer = block->mixers.front();
    if (mixer.at("type") != "attention" || mixer.at("rope").is_null() ||
        block->feed_forward.is_null()) {
      return {};
    }
    windows.push_back(mixer.at("window"));
  }
  return windows;
}

nlohmann::json write_decoder(const ModelConfig& config, const std::string& model_type,
                             const std::string& architecture) {
  const BlockConfig& block = *layer_blocks(config).front();
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
                         {"hidden_act", "silu"},
                         {"rms_norm_eps", config.norm_epsilon},
                         {"rope_theta", mixer.at("rope").at("theta")},
                         {"tie_word_embeddings", config.tie_embeddings},
                         {"torch_dtype", "float32"}};
  json.update(write_trained_context(config));
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

std::vector<int64_t> read_layer_windows(ConfigReader& reader) {
  // The defaults of the reference; an explicit null is no window.
  constexpr int64_t kWindow = 4096, kFirst = 28;
  const auto layers = static_cast<size_t>(read_layer_count(reader));
  int64_t window =
      reader.integer("sliding_window", is_null(reader, "sliding_window") ? 0 : kWindow, 1);
  if (!reader.boolean("use_sliding_window", false)) window = 0;
  const int64_t first = reader.integer("max_window_layers", kFirst, 0);
  std::vector<int64_t> windows;
  for (size_t i = 0; i < layers; ++i) {
    windows.push_back(static_cast<int64_t>(i) >= first ? window : 0);
  }
  if (!reader.has("layer_types")) {
    reader.ignore("layer_types");
    return windows;
  }
  const nlohmann::json& types = reader.raw("layer_types");
  require(types.is_array() && types.size() == layers, reader.path("layer_types"),
          "must be a list with one entry for each of {} layers", layers);
  for (size_t i = 0; i < layers; ++i) {
    const bool sliding = types[i] == "sliding_attention";
    require(sliding || types[i] == "full_attention", reader.path("layer_types"),
            "{} is neither \"full_attention\" nor \"sliding_attention\"", types[i].dump());
    require(!sliding || window > 0, reader.path("layer_types"),
            "\"sliding_attention\" without use_sliding_window and sliding_window");
    windows[i] = sliding ? window : 0;
  }
  return windows;
}

nlohmann::json write_layer_windows(const std::vector<int64_t>& windows) {
  const int64_t window = *std::ranges::max_element(windows);
  if (window == 0) return {{"use_sliding_window", false}};
  nlohmann::json json = {{"use_sliding_window", true}, {"sliding_window", window}};
  json["max_window_layers"] = std::ranges::find(windows, window) - windows.begin();
  for (const int64_t of_layer : windows) {
    json["layer_types"].push_back(of_layer == 0 ? "full_attention" : "sliding_attention");
  }
  return json;
}

}  // namespace pronghorn
