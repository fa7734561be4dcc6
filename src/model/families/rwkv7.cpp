// The RWKV-7 family (arXiv 2503.14456) as the library flash-linear-attention publishes it.
#include <utility>

#include "base/error.h"
#include "layers/toolbox.h"
#include "model/families.h"
#include "model/families/mapping.h"
#include "model/families/published_keys.h"
#include "model/families/rwkv_keys.h"

namespace pronghorn {
namespace {

constexpr const char* kRanks[] = {"decay_low_rank_dim", "gate_low_rank_dim", "a_low_rank_dim",
                                  "v_low_rank_dim"};
constexpr int64_t kUsualRanks[] = {64, 128, 64, 16};
constexpr double kRatio = 4;  // of the channel mix

// Values as wide as keys: absent, a number, or one for each layer.
void check_value_dim(ConfigReader& reader, int64_t hidden_size) {
  const nlohmann::json value_dim = reader.raw("value_dim");
  const nlohmann::json list = value_dim.is_array() ? value_dim : nlohmann::json{value_dim};
  for (const nlohmann::json& width : list) {
    require(width.is_null() || width == hidden_size, reader.path("value_dim"),
            "{}: values of another width than hidden_size {} are not supported", value_dim.dump(),
            hidden_size);
  }
}

ModelConfig read(ConfigReader reader) {
  const int64_t hidden_size = reader.integer("hidden_size", 2048, 1, 1 << 24);
  const int64_t layers = reader.integer("num_hidden_layers", 24, 1, kMaxBlocks);
  int64_t head_dim = reader.integer("head_dim", is_null(reader, "head_dim") ? 0 : 64, 0);
  const int64_t heads =
      reader.integer("num_heads", head_dim > 0 ? hidden_size / head_dim : 0, 1, limits::kHeads);
  if (head_dim == 0) head_dim = hidden_size / heads;
  require(hidden_size % head_dim == 0, reader.path("head_dim"), "{} does not divide hidden_size {}",
          head_dim, hidden_size);
  nlohmann::json settings = read_rwkv_settings(reader, hidden_size);
  check_value_dim(reader, hidden_size);
  nlohmann::json mixer = {
      {"type", "rwkv7"}, {"heads", hidden_size / head_dim}, {"head_dim", head_dim}};
  for (size_t i = 0; i < std::size(kRanks); ++i) {
    mixer[kRanks[i]] = reader.integer(kRanks[i], kUsualRanks[i], 1);
  }
  const nlohmann::json ffn = {{"type", "channel_mix"},
                              {"size", read_channel_mix_size(reader, hidden_size, kRatio)}};
  read_trained_context(reader, settings);
  finish_published(reader);
  return layered_config(
      reader, std::move(settings),
      std::vector<nlohmann::json>(static_cast<size_t>(layers), {{"mixer", mixer}, {"ffn", ffn}}));
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const BlockConfig* block = uniform_block(config, "rwkv7");
  if (block == nullptr || !is_channel_mix(block->feed_forward, false)) return {};
  const nlohmann::json& mixer = block->mixers.front();
  nlohmann::json json = write_rwkv_settings(config, "rwkv7", "RWKV7ForCausalLM");
  json["head_dim"] = mixer.at("head_dim");
  json["num_heads"] = mixer.at("heads");
  for (const char* rank : kRanks) json[rank] = mixer.at(rank);
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const Transform row = transforms::squeeze(0).then(transforms::squeeze(0));  // of [1, 1, width]
  std::vector<std::string> mixes;
  std::vector<TensorRule> rules;
  const std::string attn = "model.layers.*.attn.";
  for (const std::string mix : {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g"}) {
    mixes.push_back("layers.*.mixer." + mix);
    rules.push_back({{mixes.back()}, {attn + mix}, row});
  }
  TensorRules tensors = rwkv_tensors(config, rules);
  // The first checkpoints had all mixes in one.
  tensors.layouts = {{mixes, {attn + "x_x"}, transforms::unstack()}};
  return tensors;
}

}  // namespace

Family rwkv7_family() { return {"rwkv7", read, write, tensors}; }

}  // namespace pronghorn
