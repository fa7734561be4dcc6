// The RWKV-7 family (arXiv 2503.14456) as the library flash-linear-attention publishes it.
#include <cmath>
#include <utility>

#include "base/error.h"
#include "layers/toolbox.h"
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/mapping.h"
#include "model/families/published_keys.h"

namespace pronghorn {
namespace {

constexpr const char* kRanks[] = {"decay_low_rank_dim", "gate_low_rank_dim", "a_low_rank_dim",
                                  "v_low_rank_dim"};
constexpr int64_t kUsualRanks[] = {64, 128, 64, 16};

// Width of the channel mix: hidden_ratio x hidden_size up to the next multiple of 32, unless given.
int64_t read_size(ConfigReader& reader, int64_t hidden_size) {
  constexpr int64_t kMultiple = 32;
  const double ratio = reader.number("hidden_ratio", 4.0, 0.01, 1024);
  const auto size = static_cast<int64_t>(ratio * static_cast<double>(hidden_size));
  return reader.integer("intermediate_size", (size + kMultiple - 1) / kMultiple * kMultiple, 1);
}

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
  require(!reader.has("attn"), reader.path("attn"),
          "layers of attention in place of some are not supported");
  check_value_dim(reader, hidden_size);
  reader.one_of("hidden_act", {"sqrelu"}, "sqrelu");
  nlohmann::json mixer = {
      {"type", "rwkv7"}, {"heads", hidden_size / head_dim}, {"head_dim", head_dim}};
  for (size_t i = 0; i < std::size(kRanks); ++i) {
    mixer[kRanks[i]] = reader.integer(kRanks[i], kUsualRanks[i], 1);
  }
  const nlohmann::json ffn = {{"type", "channel_mix"}, {"size", read_size(reader, hidden_size)}};
  nlohmann::json settings = {{"vocab_size", reader.integer("vocab_size", 32000, 1)},
                             {"hidden_size", hidden_size},
                             {"tie_embeddings", reader.boolean("tie_word_embeddings", false)},
                             {"embedding_norm", reader.boolean("norm_first", true)},
                             {"norm",
                              {{"type", "layer_norm"},
                               {"bias", reader.boolean("norm_bias", true)},
                               {"epsilon", reader.number("norm_eps", 1e-5, 0)}}}};
  for (const char* key : {"attn_mode", "fuse_linear_cross_entropy", "use_l2warp"}) {
    reader.ignore(key);
  }
  read_trained_context(reader, settings);
  finish_published(reader);
  return layered_config(
      reader, std::move(settings),
      std::vector<nlohmann::json>(static_cast<size_t>(layers), {{"mixer", mixer}, {"ffn", ffn}}));
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const BlockConfig* block = uniform_block(config, "rwkv7");
  if (block == nullptr || block->feed_forward.is_null() ||
      block->feed_forward.at("type") != "channel_mix") {
    return {};
  }
  const nlohmann::json& mixer = block->mixers.front();
  nlohmann::json json = {{"model_type", "rwkv7"},
                         {"architectures", {"RWKV7ForCausalLM"}},
                         {"vocab_size", config.vocab_size},
                         {"hidden_size", config.hidden_size},
                         {"num_hidden_layers", config.block_count()},
                         {"head_dim", mixer.at("head_dim")},
                         {"num_heads", mixer.at("heads")},
                         {"intermediate_size", block->feed_forward.at("size")},
                         {"hidden_act", "sqrelu"},
                         {"norm_first", config.embedding_norm},
                         {"norm_bias", config.norm_bias},
                         {"norm_eps", config.norm_epsilon},
                         {"tie_word_embeddings", config.tie_embeddings},
                         {"torch_dtype", "float32"}};
  for (const char* rank : kRanks) json[rank] = mixer.at(rank);
  json.update(write_trained_context(config));
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "model.layers.*.";
  const Transform row = transforms::squeeze(0).then(transforms::squeeze(0));  // of [1, 1, width]
  TensorRules tensors;
  tensors.rules = {{{"embeddings.weight"}, {"model.embeddings.weight"}, {}},
                   {{"embedding_norm.*"}, {"model.layers.0.pre_norm.*"}, {}},
                   {{layer + "mixer_norm.*"}, {theirs + "attn_norm.*"}, {}}};
  std::vector<std::string> mixes;
  for (const char* mix : {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g"}) {
    mixes.push_back(layer + "mixer." + mix);
    tensors.rules.push_back({{mixes.back()}, {theirs + "attn." + mix}, row});
  }
  // The first checkpoints had all mixes in one.
  tensors.layouts = {{mixes, {theirs + "attn.x_x"}, transforms::unstack()}};
  tensors.rules.insert(tensors.rules.end(), {{{layer + "mixer.*"}, {theirs + "attn.*"}, {}},
                                             {{layer + "ffn_norm.*"}, {theirs + "ffn_norm.*"}, {}},
                                             {{layer + "ffn.*"}, {theirs + "ffn.*"}, {}},
                                             {{"norm.*"}, {"model.norm.*"}, {}},
                                             {{"lm_head.weight"}, {"lm_head.weight"}, {}}});
  tensors.passed_over = tied_head(config, "lm_head.weight");
  return tensors;
}

}  // namespace

Family rwkv7_family() { return {"rwkv7", read, write, tensors}; }

}  // namespace pronghorn
