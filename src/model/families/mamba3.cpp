// The Mamba-3 family (arXiv 2603.15569), as flash-linear-attention's model_type "mamba3".
#include <cmath>

#include "base/error.h"
#include "model/families.h"
#include "model/families/backbone.h"
#include "model/families/mixture.h"
#include "model/families/published_keys.h"

namespace pronghorn {
namespace {

nlohmann::json read_mixer(ConfigReader& reader, int64_t hidden_size) {
  const int64_t head_dim = reader.integer("head_dim", 64, 1, 1 << 17);
  const double expand = reader.number("expand", 2.0, 0.0625, 64);
  const int64_t inner = std::llround(expand * static_cast<double>(hidden_size));
  require(inner % head_dim == 0, reader.path("head_dim"),
          "{} does not divide the inner size {} (expand x hidden_size)", head_dim, inner);
  require(!reader.boolean("is_mimo", false), reader.path("is_mimo"),
          "several inputs and outputs per head are not read from this family");
  reader.ignore("mimo_rank");
  return {{"type", "mamba3"},
          {"heads", inner / head_dim},
          {"head_dim", head_dim},
          {"state", reader.integer("state_size", 128, 2)},
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
                         {"is_mimo", false},
                         {"hidden_act", "silu"},
                         {"norm_eps", config.norm_epsilon},
                         {"tie_word_embeddings", config.tie_embeddings},
                         {"torch_dtype", "float32"}};
  json.update(write_trained_context(config));
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  // Biases are published for each of several inputs of a head, here one.
  std::vector<TensorRule> rules;
  for (const std::string name : {"B_bias", "C_bias"}) {
    rules.push_back(
        {{"layers.*.mixer." + name}, {"backbone.layers.*.mixer." + name}, transforms::squeeze(1)});
  }
  return with_rules(backbone_tensors(config), rules);
}

}  // namespace

Family mamba3_family() { return {"mamba3", read, write, tensors}; }

}  // namespace pronghorn
