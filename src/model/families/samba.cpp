// The Samba family (arXiv 2406.07522) as the library flash-linear-attention publishes it: Mamba and
// attention in a window in turn, each with a gated feed-forward.
#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "layers/toolbox.h"
#include "model/families.h"
#include "model/families/hybrid.h"
#include "model/families/published_keys.h"

namespace pronghorn {
namespace {

constexpr int64_t kMostRatio = 1 << 10;

// Width of a feed-forward: two thirds of hidden_size x hidden_ratio, up to the next multiple of
// 256.
int64_t feed_forward_size(int64_t hidden_size, int64_t ratio) {
  constexpr int64_t kMultiple = 256;
  const auto size = static_cast<int64_t>(static_cast<double>(hidden_size * ratio) * 2 / 3);
  return (size + kMultiple - 1) / kMultiple * kMultiple;
}

nlohmann::json read_mamba(ConfigReader& reader, int64_t hidden_size) {
  const double expand = reader.number("expand", 2.0, limits::kLeastExpand, limits::kExpand);
  reader.ignore("intermediate_size");  // expand x hidden_size
  require(reader.boolean("use_conv_bias", true), reader.path("use_conv_bias"),
          "false is not what the published code computes");
  nlohmann::json mixer = {{"type", "mamba"},
                          {"inner_size", std::llround(expand * static_cast<double>(hidden_size))},
                          {"state", reader.integer("state_size", 16, 1)},
                          {"conv_kernel", reader.integer("conv_kernel", 4, 1)},
                          {"bias", reader.boolean("use_bias", false)},
                          {"time_step_min", reader.number("time_step_min", 0.001)},
                          {"time_step_max", reader.number("time_step_max", 0.1)},
                          {"time_step_floor", reader.number("time_step_floor", 1e-4)}};
  read_time_step_rank(reader, "time_step_rank", mixer);
  return mixer;
}

// The layers of attention and their mixer.
std::pair<nlohmann::json, nlohmann::json> read_attention(ConfigReader& reader) {
  ConfigReader attn = reader.object("attn");
  const nlohmann::json layers = attn.raw("layers");
  require(layers.is_array(), attn.path("layers"), "must be a list of layers");
  const int64_t heads = attn.integer("num_heads", {}, 1);
  nlohmann::json mixer = {{"type", "attention"},
                          {"heads", heads},
                          {"kv_heads", attn.integer("num_kv_heads", heads, 1)},
                          {"bias", attn.boolean("qkv_bias", false)},
                          {"window", attn.integer("window_size", 0, 1)},
                          {"rope", {{"theta", attn.number("rope_theta", 10000.0, 0)}}}};
  finish_published(attn);
  return {layers, mixer};
}

ModelConfig read(ConfigReader reader) {
  const int64_t hidden_size = reader.integer("hidden_size", 2304, 1, 1 << 24);
  const nlohmann::json mamba = read_mamba(reader, hidden_size);
  const auto [attention_layers, attention] = read_attention(reader);
  reader.one_of("hidden_act", {"swish"}, "swish");
  const int64_t size =
      feed_forward_size(hidden_size, reader.integer("hidden_ratio", 4, 1, kMostRatio));
  const int64_t count = read_layer_count(reader);
  nlohmann::json settings = {
      {"vocab_size", reader.integer("vocab_size", 32000, 1)},
      {"hidden_size", hidden_size},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", false)},
      {"norm", {{"type", "rms_norm"}, {"epsilon", reader.number("norm_eps", 1e-5, 0)}}}};
  for (const char* key : {"fuse_linear_cross_entropy", "use_l2warp"}) reader.ignore(key);
  read_trained_context(reader, settings);
  finish_published(reader);
  std::vector<nlohmann::json> layers;
  for (int64_t i = 0; i < count; ++i) {
    layers.push_back({{"mixer", lists(attention_layers, i) ? attention : mamba},
                      {"ffn", {{"type", "swiglu"}, {"size", size}}}});
  }
  return layered_config(reader, std::move(settings), layers);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const auto layers = hybrid_layers(config, "mamba");
  const auto recurrent = layers_with(layers, "mamba"), seeing = layers_with(layers, "attention");
  if (recurrent.empty()) return {};
  const nlohmann::json& mamba = recurrent.front()->mixers.front();
  const nlohmann::json& attention = seeing.front()->mixers.front();
  if (!heads_share_width(config, attention) || attention.at("rope").is_null()) return {};
  nlohmann::json numbers = nlohmann::json::array();
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i]->mixers.front().at("type") == "attention") numbers.push_back(i);
  }
  int64_t ratio = 1;
  const int64_t size = layers.front()->feed_forward.at("size");
  while (ratio < kMostRatio && feed_forward_size(config.hidden_size, ratio) < size) ++ratio;
  nlohmann::json attn = {{"layers", numbers},
                         {"num_heads", attention.at("heads")},
                         {"num_kv_heads", attention.at("kv_heads")},
                         {"qkv_bias", attention.at("bias")},
                         {"window_size", nullptr},
                         {"rope_theta", attention.at("rope").at("theta")}};
  if (attention.at("window") > 0) attn["window_size"] = attention.at("window");
  nlohmann::json json = {
      {"model_type", "samba"},
      {"architectures", {"SambaForCausalLM"}},
      {"vocab_size", config.vocab_size},
      {"hidden_size", config.hidden_size},
      {"num_hidden_layers", config.block_count()},
      {"expand", mamba.at("inner_size").get<double>() / static_cast<double>(config.hidden_size)},
      {"state_size", mamba.at("state")},
      {"conv_kernel", mamba.at("conv_kernel")},
      {"time_step_rank", mamba.at("time_step_rank")},
      {"use_bias", mamba.at("bias")},
      {"attn", std::move(attn)},
      {"hidden_act", "swish"},
      {"hidden_ratio", ratio},
      {"norm_eps", config.norm_epsilon},
      {"tie_word_embeddings", config.tie_embeddings},
      {"torch_dtype", "float32"}};
  for (const char* key : {"time_step_min", "time_step_max", "time_step_floor"}) {
    json[key] = mamba.at(key);
  }
  json.update(write_trained_context(config));
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "backbone.layers.*.";
  TensorRules tensors;
  tensors.rules = {
      {{"embeddings.weight"}, {"backbone.embeddings.weight"}, {}},
      {{layer + "mixer_norm.*"}, {theirs + "mixer_norm.*"}, {}},
      {{layer + "mixer.conv1d.weight"}, {theirs + "mixer.conv1d.weight"}, transforms::squeeze(1)},
      {{layer + "mixer.*"}, {theirs + "mixer.*"}, {}},
      {{layer + "ffn_norm.*"}, {theirs + "mlp_norm.*"}, {}},
      {{layer + "ffn.*"}, {theirs + "mlp.*"}, {}},
      {{"norm.*"}, {"backbone.norm_f.*"}, {}},
      {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  tensors.passed_over = tied_head(config, "lm_head.weight");
  return tensors;
}

}  // namespace

Family samba_family() { return {"samba", read, write, tensors}; }

}  // namespace pronghorn
