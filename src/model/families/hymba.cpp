// The Hymba family (arXiv 2411.13676) as nvidia publishes it: attention and Mamba side by side in
// every layer, few layers of which see everything, keys and values that neighbours share, and meta
// tokens before every text.
//
// A window is what the published code has for whole texts (its mask for flexible attention): a row
// sees `sliding_window` tokens before itself and itself, one more than the same code keeps when it
// decodes.
#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "base/error.h"
#include "layers/toolbox.h"
#include "model/config_checks.h"
#include "model/families.h"
#include "model/families/hybrid.h"
#include "model/families/published_keys.h"

namespace pronghorn {
namespace {

// Layers that share keys: the first makes them, the others read them.
using Groups = std::vector<std::vector<int64_t>>;

Groups read_groups(ConfigReader& reader, int64_t layers) {
  const std::string where = reader.path("kv_reuse_group");
  const nlohmann::json& list = reader.raw("kv_reuse_group");
  const int64_t every = reader.integer("kv_reuse_every_i_layer", -1);
  require(!reader.boolean("kv_weight_reuse", false), reader.path("kv_weight_reuse"),
          "true is not what the published code computes");
  Groups groups;
  if (list.is_null()) {
    for (int64_t i = 0; every > 0 && i < layers; ++i) {
      if (i % every == 0) groups.emplace_back();
      groups.back().push_back(i);
    }
    return groups;
  }
  require(list.is_array(), where, "must be a list of lists of layers");
  std::vector<bool> taken(static_cast<size_t>(layers));
  for (const nlohmann::json& one : list) {
    require(one.is_array() && !one.empty(), where, "must be a list of lists of layers");
    std::vector<int64_t>& group = groups.emplace_back();
    for (const nlohmann::json& layer : one) {
      const int64_t number = layer.is_number_integer() ? layer.get<int64_t>() : -1;
      require(number >= 0 && number < layers && (group.empty() || number > group.back()), where,
              "{} is not a list of ascending layers of {}", one.dump(), layers);
      require(!taken[static_cast<size_t>(number)], where, "layer {} is in two groups", number);
      taken[static_cast<size_t>(number)] = true;
      group.push_back(number);
    }
  }
  return groups;
}

// The least number for each group that none has whose layers lie between its own.
std::vector<int64_t> numbers_of(const Groups& groups) {
  std::vector<int64_t> numbers;
  for (size_t i = 0; i < groups.size(); ++i) {
    std::vector<bool> taken(i + 1);  // number n + 1
    for (size_t j = 0; j < i; ++j) {
      const bool apart =
          groups[j].back() < groups[i].front() || groups[i].back() < groups[j].front();
      if (!apart) taken[static_cast<size_t>(numbers[j] - 1)] = true;
    }
    numbers.push_back(1 + (std::ranges::find(taken, false) - taken.begin()));
  }
  return numbers;
}

// Base of the angles: with rope_type "ntk" that of the published code, which doubles the factor by
// which the context grew.
double read_theta(ConfigReader& reader, int64_t head_dim) {
  const double theta = reader.number("rope_theta", kRopeTheta, 1);
  const int64_t original = reader.integer("orig_max_position_embeddings", 0, 0);
  const std::string type = reader.one_of("rope_type", {"default", "ntk"}, "default");
  if (type == "default") return theta;
  const int64_t context = reader.integer("max_position_embeddings", {}, 1);
  require(original > 0 && context >= original && head_dim > 2,
          reader.path("orig_max_position_embeddings"),
          "{}: rope_type \"ntk\" needs a context from 1 to max_position_embeddings {}, and heads "
          "wider than 2, not of {}",
          original, context, head_dim);
  const double factor = 2 * static_cast<double>(context) / static_cast<double>(original) - 1;
  const auto width = static_cast<double>(head_dim);
  return theta * std::pow(factor, width / (width - 2));
}

nlohmann::json read_mixer(ConfigReader& reader, int64_t hidden_size) {
  const int64_t heads = reader.integer("num_attention_heads", 32, 1, 1 << 20);
  const double expand = reader.number("mamba_expand", 2, limits::kLeastExpand, limits::kExpand);
  const auto inner = static_cast<int64_t>(expand * static_cast<double>(hidden_size));
  require(hidden_size % heads == 0 && inner % heads == 0, reader.path("num_attention_heads"),
          "{} does not divide hidden_size {} and {} channels", heads, hidden_size, inner);
  const int64_t head_dim = hidden_size / heads;
  for (const auto& [key, width] :
       {std::pair{"attn_hidden_size", hidden_size}, {"kq_head_dim", head_dim}}) {
    const int64_t given = reader.integer(key, -1);
    require(given < 1 || given == width, reader.path(key), "{} is not supported (only {})", given,
            width);
  }
  reader.ignore("v_head_dim");  // the published code takes that of the channels
  reader.one_of("kq_norm", {"none"}, "none");
  reader.one_of("hidden_act", {"silu"}, "silu");
  require(reader.integer("num_mamba", 1) == 1, reader.path("num_mamba"), "only 1 is supported");
  nlohmann::json mixer = {
      {"type", "hymba"},
      {"heads", heads},
      {"kv_heads", reader.integer("num_key_value_heads", heads, 1)},
      {"value_dim", inner / heads},
      {"bias", reader.boolean("mamba_proj_bias", false)},
      {"state", reader.integer("mamba_d_state", 16, 1)},
      {"conv_kernel", reader.integer("mamba_d_conv", 4, 1)},
      {"conv_bias", reader.boolean("mamba_conv_bias", true)},
      {"inner_norms", reader.boolean("mamba_inner_layernorms", true) ? "learned" : "none"}};
  read_time_step_rank(reader, "mamba_dt_rank", mixer);
  if (reader.boolean("rope", false)) {
    mixer["rope"] = {{"theta", read_theta(reader, head_dim)}};
  } else {
    for (const char* key : {"rope_theta", "rope_type", "orig_max_position_embeddings"}) {
      reader.ignore(key);
    }
  }
  return mixer;
}

// The feed-forward, which is the only one of a layer's "experts".
nlohmann::json read_feed_forward(ConfigReader& reader) {
  require(reader.integer("num_experts", 1) == 1, reader.path("num_experts"),
          "only 1 is what the published code computes");
  reader.ignore("num_experts_per_tok");
  const int64_t size = reader.integer("intermediate_size", {}, 1);
  const std::string activation = reader.one_of("mlp_hidden_act", {"silu", "relu2"}, "silu");
  return activation == "silu" ? gated_ffn(size, "silu", false, false)
                              : plain_ffn(size, "relu2", false);
}

ModelConfig read(ConfigReader reader) {
  const int64_t hidden_size = reader.integer("hidden_size", {}, 1, 1 << 24);
  const int64_t count = read_layer_count(reader);
  const nlohmann::json mixer = read_mixer(reader, hidden_size);
  const nlohmann::json ffn = read_feed_forward(reader);
  const int64_t window = reader.integer("sliding_window", 0, 0, 1 << 30);
  const nlohmann::json whole = reader.raw("global_attn_idx");
  require(whole.is_null() || whole.is_array(), reader.path("global_attn_idx"),
          "must be a list of layers");
  require(reader.integer("memory_tokens_interspersed_every", 0) == 0,
          reader.path("memory_tokens_interspersed_every"), "is not supported (only 0)");
  nlohmann::json settings = {
      {"vocab_size", reader.integer("vocab_size", 65536, 1)},
      {"hidden_size", hidden_size},
      {"prefix_tokens", reader.integer("num_memory_tokens", 0, 0, kMaxPrefix)},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", false)},
      {"norm", {{"type", "rms_norm"}, {"epsilon", reader.number("rms_norm_eps", 1e-6, 0)}}}};
  const Groups groups = read_groups(reader, count);
  read_trained_context(reader, settings);
  const int64_t trained = settings.value("max_position_embeddings", int64_t{0});
  const nlohmann::json& original = reader.peek("orig_max_position_embeddings");
  if (original.is_number_integer() && original > 0 && original < trained) {
    settings["original_max_position_embeddings"] = original;
  }
  for (const char* key : {"attn_implementation_new", "calc_logits_for_entire_prompt", "conv_dim",
                          "layer_type", "modify_attention_mask"}) {
    reader.ignore(key);
  }
  finish_published(reader);

  std::vector<nlohmann::json> layers;
  for (int64_t i = 0; i < count; ++i) {
    layers.push_back({{"mixer", mixer}, {"ffn", ffn}});
    if (window > 0 && !lists(whole, i)) layers.back()["mixer"]["window"] = window + 1;
  }
  const std::vector<int64_t> numbers = numbers_of(groups);
  for (size_t g = 0; g < groups.size(); ++g) {
    for (const int64_t layer : groups[g]) {
      const char* key = layer == groups[g].front() ? "keys_to" : "keys_from";
      layers[static_cast<size_t>(layer)]["mixer"][key] = numbers[g];
    }
  }
  return layered_config(reader, std::move(settings), layers);
}

// The groups and windows of layers, all of this type. What they do not say expresses() finds.
void write_layers(const std::vector<const BlockConfig*>& layers, nlohmann::json& json) {
  json["global_attn_idx"] = nlohmann::json::array();
  json["sliding_window"] = nullptr;
  json["kv_reuse_group"] = nlohmann::json::array();
  std::map<int64_t, size_t> groups;  // of a number, the last that has it
  for (size_t i = 0; i < layers.size(); ++i) {
    const nlohmann::json& mixer = layers[i]->mixers.front();
    const int64_t window = mixer.at("window");
    if (window > 1) {
      json["sliding_window"] = window - 1;
    } else {
      json["global_attn_idx"].push_back(i);
    }
    const int64_t to = mixer.at("keys_to"), from = mixer.at("keys_from");
    if (to > 0) {
      groups[to] = json["kv_reuse_group"].size();
      json["kv_reuse_group"].push_back({i});
    }
    if (from > 0) json["kv_reuse_group"][groups.at(from)].push_back(i);
  }
  if (json.at("kv_reuse_group").empty()) json["kv_reuse_group"] = nullptr;
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = layer_blocks(config);
  for (const BlockConfig* layer : layers) {
    if (layer->mixers.size() != 1 || layer->mixers.front().at("type") != "hymba") return {};
    if (layer->feed_forward.is_null() || !is_decoder_ffn(layer->feed_forward)) return {};
  }
  if (layers.empty()) return {};
  const nlohmann::json& mixer = layers.front()->mixers.front();
  const nlohmann::json& ffn = layers.front()->feed_forward;
  if (!heads_share_width(config, mixer)) return {};
  const int64_t inner = mixer.at("heads").get<int64_t>() * mixer.at("value_dim").get<int64_t>();
  const nlohmann::json& rope = mixer.at("rope");
  nlohmann::json json = {
      {"model_type", "hymba"},
      {"architectures", {"HymbaForCausalLM"}},
      {"vocab_size", config.vocab_size},
      {"hidden_size", config.hidden_size},
      {"num_hidden_layers", config.block_count()},
      {"num_attention_heads", mixer.at("heads")},
      {"num_key_value_heads", mixer.at("kv_heads")},
      {"intermediate_size", ffn.at("size")},
      {"hidden_act", "silu"},
      {"mlp_hidden_act", write_activation(activation_of(ffn))},
      {"num_experts", 1},
      {"num_experts_per_tok", 1},
      {"kq_norm", "none"},
      {"num_mamba", 1},
      {"mamba_expand", static_cast<double>(inner) / static_cast<double>(config.hidden_size)},
      {"mamba_d_state", mixer.at("state")},
      {"mamba_d_conv", mixer.at("conv_kernel")},
      {"mamba_dt_rank", mixer.at("time_step_rank")},
      {"mamba_conv_bias", mixer.at("conv_bias")},
      {"mamba_proj_bias", mixer.at("bias")},
      {"mamba_inner_layernorms", mixer.at("inner_norms") == "learned"},
      {"num_memory_tokens", config.prefix_tokens},
      {"rope", !rope.is_null()},
      {"rms_norm_eps", config.norm_epsilon},
      {"tie_word_embeddings", config.tie_embeddings},
      {"torch_dtype", "float32"}};
  if (inner % config.hidden_size == 0) json["mamba_expand"] = inner / config.hidden_size;
  if (!rope.is_null()) json["rope_theta"] = rope.at("theta");
  if (config.context.original > 0) json["orig_max_position_embeddings"] = config.context.original;
  write_layers(layers, json);
  json.update(write_trained_context(config));
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const std::string ours = "layers.*.", mixer = ours + "mixer.";
  const std::string theirs = "model.layers.*.", mamba = theirs + "mamba.";
  TensorRules tensors;
  tensors.rules = {{{"embeddings.weight"}, {"model.embed_tokens.weight"}, {}},
                   {{"prefix.weight"}, {"model.memory_tokens"}, {}},
                   {{ours + "mixer_norm.*"}, {theirs + "input_layernorm.*"}, {}},
                   {{mixer + "conv1d.weight"}, {mamba + "conv1d.weight"}, transforms::squeeze(1)},
                   {{mixer + "x_proj.*"}, {mamba + "x_proj.0.*"}, {}},
                   {{mixer + "dt_proj.*"}, {mamba + "dt_proj.0.*"}, {}},
                   {{mixer + "A_log"}, {mamba + "A_log.0"}, {}},
                   {{mixer + "D"}, {mamba + "D.0"}, {}},
                   {{mixer + "b_layernorm.*"}, {mamba + "B_layernorm.*"}, {}},
                   {{mixer + "c_layernorm.*"}, {mamba + "C_layernorm.*"}, {}},
                   {{mixer + "attention_norm.*"}, {mamba + "pre_avg_layernorm1.*"}, {}},
                   {{mixer + "mamba_norm.*"}, {mamba + "pre_avg_layernorm2.*"}, {}},
                   {{mixer + "*"}, {mamba + "*"}, {}},
                   {{ours + "ffn_norm.*"}, {theirs + "pre_moe_layernorm.*"}, {}},
                   {{ours + "ffn.*"}, {theirs + "moe.experts.0.*"}, {}},
                   {{"norm.*"}, {"model.final_layernorm.*"}, {}},
                   {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  tensors.passed_over = tied_head(config, "lm_head.weight");
  return tensors;
}

}  // namespace

Family hymba_family() { return {"hymba", read, write, tensors}; }

}  // namespace pronghorn
