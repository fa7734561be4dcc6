// The Mamba-3 family (arXiv 2603.15569), as flash-linear-attention's model_type "mamba3".
#include <cmath>

#include "base/error.h"
#include "model/families.h"
#include "model/families/backbone.h"
#include "model/families/mapping.h"
#include "model/families/mixture.h"
#include "model/families/published_keys.h"
#include "ops/outer_product_state.h"

namespace pronghorn {
namespace {

nlohmann::json read_mixer(ConfigReader& reader, int64_t hidden_size) {
  const int64_t head_dim = reader.integer("head_dim", 64, 1, 1 << 17);
  const double expand = reader.number("expand", 2.0, 0.0625, 64);
  const int64_t inner = std::llround(expand * static_cast<double>(hidden_size));
  require(inner % head_dim == 0, reader.path("head_dim"),
          "{} does not divide the inner size {} (expand x hidden_size)", head_dim, inner);
  const int64_t state = reader.integer("state_size", 128, 2);
  int64_t rank = 1;
  if (reader.boolean("is_mimo", false)) {
    rank = reader.integer("mimo_rank", 4, 2, kMostUpdates);
    require(state % 2 == 0, reader.path("state_size"), "{} has no two halves for `is_mimo`", state);
  } else {
    reader.ignore("mimo_rank");
  }
  return {{"type", "mamba3"},
          {"heads", inner / head_dim},
          {"head_dim", head_dim},
          {"state", state},
          {"rank", rank},
          {"groups", reader.integer("n_groups", 1, 1)},
          {"rope_fraction", reader.number("rope_fraction", 0.5, 0, 1)},
          {"least_rate", reader.number("A_floor", 1e-4)},
          {"time_step_min", reader.number("dt_min", 0.001)},
          {"time_step_max", reader.number("dt_max", 0.1)},
          {"time_step_floor", reader.number("dt_init_floor", 1e-4)},
          {"bias", reader.boolean("use_bias", false)},
          {"output_norm", reader.boolean("is_outproj_norm", false)}};
}

ModelConfig read(ConfigReader reader) {
  const int64_t hidden_size = reader.integer("hidden_size", 2048, 1, 1 << 17);
  const nlohmann::json mixer = read_mixer(reader, hidden_size);
  reader.one_of("hidden_act", {"silu", "swish"}, "silu");
  nlohmann::json settings = {
      {"vocab_size", reader.integer("vocab_size", 32000, 1)},
      {"hidden_size", hidden_size},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", false)},
      {"norm", {{"type", "rms_norm"}, {"epsilon", reader.number("norm_eps", 1e-5, 0)}}}};
  const int64_t layers = reader.integer("num_hidden_layers", 48, 1, kMaxBlocks);
  for (const char* key : {"chunk_size", "num_heads", "residual_in_fp32", "rescale_prenorm_residual",
                          "fuse_linear_cross_entropy", "use_l2warp"}) {
    reader.ignore(key);
  }
  read_trained_context(reader, settings);
  finish_published(reader);
  const nlohmann::json layer = {{"mixer", mixer}};
  return uniform_config(reader, settings, layer, layers);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const BlockConfig* block = uniform_block(config, "mamba3");
  if (block == nullptr || !block->feed_forward.is_null()) return {};
  const nlohmann::json& mixer = block->mixers.front();
  const int64_t inner = mixer.at("heads").get<int64_t>() * mixer.at("head_dim").get<int64_t>();
  const double fraction = mixer.at("rope_fraction");
  // The reference has whole expansion factors and two shares of turned columns.
  if (inner % config.hidden_size != 0 || (fraction != 0.5 && fraction != 1)) return {};
  // With several inputs of a head, pairs of turned columns are halves apart.
  const int64_t rank = mixer.at("rank");
  if (rank > 1 && mixer.at("state").get<int64_t>() % 2 != 0) return {};
  nlohmann::json json = {{"model_type", "mamba3"},
                         {"architectures", {"Mamba3ForCausalLM"}},
                         {"vocab_size", config.vocab_size},
                         {"hidden_size", config.hidden_size},
                         {"num_hidden_layers", config.block_count()},
                         {"expand", inner / config.hidden_size},
                         {"head_dim", mixer.at("head_dim")},
                         {"state_size", mixer.at("state")},
                         {"n_groups", mixer.at("groups")},
                         {"rope_fraction", fraction},
                         {"A_floor", mixer.at("least_rate")},
                         {"dt_min", mixer.at("time_step_min")},
                         {"dt_max", mixer.at("time_step_max")},
                         {"dt_init_floor", mixer.at("time_step_floor")},
                         {"use_bias", mixer.at("bias")},
                         {"is_outproj_norm", mixer.at("output_norm")},
                         {"is_mimo", rank > 1},
                         {"hidden_act", "silu"},
                         {"norm_eps", config.norm_epsilon},
                         {"tie_word_embeddings", config.tie_embeddings},
                         {"torch_dtype", "float32"}};
  if (rank > 1) json["mimo_rank"] = rank;
  json.update(write_trained_context(config));
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const nlohmann::json& mixer = uniform_block(config, "mamba3")->mixers.front();
  const int64_t rank = mixer.at("rank"), heads = mixer.at("heads"), state = mixer.at("state");
  std::vector<TensorRule> rules;
  const auto add = [&](const std::string& name, const Transform& transform) {
    rules.push_back({{"layers.*.mixer." + name}, {"backbone.layers.*.mixer." + name}, transform});
  };
  if (rank == 1) {
    // Biases are published for each of several inputs of a head, here one.
    for (const char* name : {"B_bias", "C_bias"}) add(name, transforms::squeeze(1));
    return with_rules(backbone_tensors(config), rules);
  }
  // [heads, rank, ..] -> [rank, heads, ..]
  const Transform by_rank =
      transforms::fold(heads).then(transforms::deal(heads, rank)).then(transforms::unfold(rank));
  for (const char* name : {"mimo_x", "mimo_z", "mimo_o"}) add(name, by_rank);
  // Where a head has several inputs, the columns that an angle turns are half of all apart (the
  // kernels of state-spaces/mamba); where it has one, they are neighbours, as in ours.
  for (const char* name : {"B_bias", "C_bias"}) {
    add(name, by_rank.then(transforms::deal_columns(2, state / 2)));
  }
  for (const char* name : {"B_norm.weight", "C_norm.weight"}) {
    add(name, transforms::rope_halves(1, state));
  }
  const int64_t inner = heads * mixer.at("head_dim").get<int64_t>();
  const int64_t columns = 2 * rank * mixer.at("groups").get<int64_t>();  // of B and of C
  const Transform projected = transforms::rope_halves(columns, state, 2 * inner);
  add("in_proj.weight", projected);
  if (mixer.at("bias").get<bool>()) add("in_proj.bias", projected);
  return with_rules(backbone_tensors(config), rules);
}

}  // namespace

Family mamba3_family() { return {"mamba3", read, write, tensors}; }

}  // namespace pronghorn
