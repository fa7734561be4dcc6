// The RWKV-6 family (arXiv 2404.05892) as the library flash-linear-attention publishes it.
#include <cmath>
#include <utility>

#include "base/error.h"
#include "layers/toolbox.h"
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/fla.h"
#include "model/families/mapping.h"
#include "model/families/published_keys.h"
#include "model/families/rwkv_keys.h"

namespace pronghorn {
namespace {

constexpr double kRatio = 3.5;  // of the channel mix

ModelConfig read(ConfigReader reader) {
  FlaDecoder sizes;
  sizes.hidden_size = reader.integer("hidden_size", 2048, 1, 1 << 17);
  sizes.heads = reader.integer("num_heads", 4, 1, limits::kHeads);
  nlohmann::json settings = read_rwkv_settings(reader, sizes.hidden_size);
  const int64_t layers = reader.integer("num_hidden_layers", 24, 1, kMaxBlocks);
  const nlohmann::json mixer = {
      {"type", "rwkv6"},
      {"heads", sizes.heads},
      {"head_dim", read_expanded_head(reader, "expand_k", 0.5, sizes)},
      {"value_head_dim", read_expanded_head(reader, "expand_v", 1.0, sizes)},
      {"mix_low_rank_dim", reader.integer("proj_low_rank_dim", 32, 1)},
      {"decay_low_rank_dim", reader.integer("gate_low_rank_dim", 64, 1)},
      {"norm_epsilon", settings.at("norm").at("epsilon")}};
  const nlohmann::json ffn = {{"type", "channel_mix"},
                              {"size", read_channel_mix_size(reader, sizes.hidden_size, kRatio)},
                              {"receptance", true}};
  read_trained_context(reader, settings);
  finish_published(reader);
  return uniform_config(reader, std::move(settings), {{"mixer", mixer}, {"ffn", ffn}}, layers);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const BlockConfig* block = uniform_block(config, "rwkv6");
  if (block == nullptr || !is_channel_mix(block->feed_forward, true)) return {};
  const nlohmann::json& mixer = block->mixers.front();
  // The reference has one epsilon for all norms.
  if (static_cast<float>(mixer.at("norm_epsilon").get<double>()) != config.norm_epsilon) return {};
  nlohmann::json json = write_rwkv_settings(config, "rwkv6", "RWKV6ForCausalLM");
  json["norm_eps"] = mixer.at("norm_epsilon");
  json["num_heads"] = mixer.at("heads");
  json["expand_k"] = fla_expansion(config, mixer, "head_dim");
  json["expand_v"] = fla_expansion(config, mixer, "value_head_dim");
  json["proj_low_rank_dim"] = mixer.at("mix_low_rank_dim");
  json["gate_low_rank_dim"] = mixer.at("decay_low_rank_dim");
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const std::string mixer = "layers.*.mixer.", ffn = "layers.*.ffn.";
  const std::string attn = "model.layers.*.attn.", theirs = "model.layers.*.ffn.";
  // The five maps to mixes are published side by side.
  std::vector<std::string> mixes;
  for (int i = 0; i < 5; ++i) mixes.push_back(fmt::format("{}x_proj.2.{}.weight", mixer, i));
  const Transform beside =
      transforms::transpose().then(transforms::split()).then(transforms::transpose());
  return rwkv_tensors(config, {{mixes, {attn + "x_proj.2.weight"}, beside},
                               {{ffn + "x_k"}, {theirs + "key.mu"}, {}},
                               {{ffn + "x_r"}, {theirs + "receptance.mu"}, {}},
                               {{ffn + "key.*"}, {theirs + "key.linear.*"}, {}},
                               {{ffn + "receptance.*"}, {theirs + "receptance.linear.*"}, {}}});
}

}  // namespace

Family rwkv6_family() { return {"rwkv6", read, write, tensors}; }

}  // namespace pronghorn
