// The Zamba2 family (arXiv 2411.15242): Mamba-2 in every layer; before some of them one of a few
// transformer blocks, whose weights those layers share, sees the stream and the embeddings.
#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "model/families.h"
#include "model/families/backbone.h"
#include "model/families/hybrid.h"
#include "model/families/published_keys.h"

namespace pronghorn {
namespace {

constexpr double kNormEpsilon = 1e-5;  // of Mamba-2's norm, whatever the configuration says

// Which layers have a shared block before them.
std::vector<bool> read_hybrid_layers(ConfigReader& reader, int64_t layers) {
  const std::string key = "layers_block_type";
  reader.ignore("hybrid_layer_ids");
  std::vector<bool> hybrid;
  if (!reader.has(key)) {
    reader.ignore(key);
    constexpr int64_t kDefault[] = {6, 12, 18, 24, 30, 36, 42, 47, 51};
    for (int64_t i = 0; i < layers; ++i) {
      hybrid.push_back(std::ranges::find(kDefault, i) != std::end(kDefault));
    }
    return hybrid;
  }
  const nlohmann::json& kinds = reader.raw(key);
  require(kinds.is_array() && std::ssize(kinds) == layers, reader.path(key),
          "must be a list with one entry for each of {} layers", layers);
  for (const nlohmann::json& kind : kinds) {
    hybrid.push_back(kind == "hybrid");
    require(hybrid.back() || kind == "linear_attention" || kind == "mamba", reader.path(key),
            "{} is neither \"mamba\" nor \"hybrid\"", kind.dump());
  }
  return hybrid;
}

nlohmann::json read_mamba2(ConfigReader& reader, int64_t hidden_size, bool bias) {
  const int64_t heads = reader.integer("n_mamba_heads", 8, 1, 1 << 20);
  const int64_t inner = reader.integer("mamba_expand", 2, 1, 1 << 10) * hidden_size;
  require(inner % heads == 0, reader.path("n_mamba_heads"), "{} does not divide {} channels", heads,
          inner);
  const double least = reader.number("time_step_min", 0.001, 0);
  for (const char* key : {"mamba_headdim", "chunk_size", "use_conv_bias", "time_step_limit"}) {
    reader.ignore(key);
  }
  return {{"type", "mamba2"},
          {"heads", heads},
          {"head_dim", inner / heads},
          {"groups", reader.integer("mamba_ngroups", 1, 1)},
          {"state", reader.integer("mamba_d_state", 64, 1)},
          {"conv_kernel", reader.integer("mamba_d_conv", 4, 1)},
          {"bias", bias},
          {"time_step_min", least},
          {"time_step_max", reader.number("time_step_max", 0.1)},
          {"time_step_floor", reader.number("time_step_floor", 1e-4)},
          {"time_step_limit", {least, nullptr}}};
}

nlohmann::json read_attention(ConfigReader& reader, int64_t hidden_size, int64_t rank) {
  const int64_t heads = reader.integer("num_attention_heads", 32, 1, 1 << 20);
  const int64_t width = 2 * hidden_size, head_dim = width / heads;
  require(width % heads == 0, reader.path("num_attention_heads"),
          "{} does not divide twice hidden_size {}", heads, hidden_size);
  nlohmann::json mixer = {{"type", "attention"},
                          {"heads", heads},
                          {"head_dim", head_dim},
                          {"kv_heads", reader.integer("num_key_value_heads", heads, 1)},
                          {"scale", 1 / std::sqrt(static_cast<double>(head_dim) / 2)}};
  const bool adapters = reader.boolean("use_shared_attention_adapter", false);
  require(!adapters || mixer.at("kv_heads") == heads, reader.path("num_key_value_heads"),
          "is not num_attention_heads, which the reference's adapters are as wide as");
  if (adapters) mixer["adapter_rank"] = rank;
  require(!reader.boolean("use_long_context", false), reader.path("use_long_context"),
          "true is not supported: libraries take it for different positions");
  if (reader.boolean("use_mem_rope", false)) {
    mixer["rope"] = read_rope(reader, head_dim, {});
  } else {
    for (const char* key : {"rope_theta", "rope_scaling", "rope_parameters"}) reader.ignore(key);
  }
  for (const char* key : {"attention_hidden_size", "attention_head_dim", "kv_channels", "head_dim",
                          "num_query_groups"}) {
    reader.ignore(key);
  }
  return mixer;
}

ModelConfig read(ConfigReader reader) {
  const int64_t hidden_size = reader.integer("hidden_size", 2560, 1, 1 << 24);
  const std::vector<bool> hybrid = read_hybrid_layers(reader, read_layer_count(reader));
  const bool bias = reader.boolean("add_bias_linear", false);
  const nlohmann::json mamba2 = read_mamba2(reader, hidden_size, bias);
  const int64_t rank = reader.integer("adapter_rank", 128, 1);
  const int64_t shared = reader.integer("num_mem_blocks", 1, 1);
  require(reader.boolean("use_shared_mlp_adapter", true), reader.path("use_shared_mlp_adapter"),
          "false is not what the reference computes");
  nlohmann::json side = {{"mixer", read_attention(reader, hidden_size, rank)}};
  const int64_t size = reader.integer("intermediate_size", 4 * hidden_size, 1);
  side["ffn"] = {{"type", "glu"},
                 {"size", size},
                 {"activation", read_activation(reader, "hidden_act", "gelu")},
                 {"bias", bias},
                 {"adapter_rank", rank}};
  require(reader.boolean("tie_word_embeddings", true), reader.path("tie_word_embeddings"),
          "false is not supported: the reference then shares no weights between layers either");
  const double epsilon = reader.number("rms_norm_eps", kNormEpsilon, 0);
  require(epsilon == kNormEpsilon, reader.path("rms_norm_eps"), "{} is not supported (only {})",
          epsilon, kNormEpsilon);
  nlohmann::json settings = {{"vocab_size", reader.integer("vocab_size", 32000, 1)},
                             {"hidden_size", hidden_size},
                             {"tie_embeddings", true},
                             {"norm", {{"type", "rms_norm"}, {"epsilon", epsilon}}}};
  read_trained_context(reader, settings);
  finish_published(reader);
  std::vector<nlohmann::json> layers;
  int64_t uses = 0;
  for (const bool has_side : hybrid) {
    layers.push_back({{"mixer", mamba2}});
    if (!has_side) continue;
    side["shared"] = 1 + uses++ % shared;
    layers.back()["side"] = side;
  }
  return layered_config(reader, std::move(settings), layers);
}

void write_side(nlohmann::json& json, const SideConfig& side, const TrainedContext& context) {
  const nlohmann::json &attention = side.mixer, &ffn = side.feed_forward;
  json.update(
      {{"num_attention_heads", attention.at("heads")},
       {"num_key_value_heads", attention.at("kv_heads")},
       {"use_shared_attention_adapter", attention.at("adapter_rank") > 0},
       {"use_mem_rope", !attention.at("rope").is_null()},
       {"adapter_rank", ffn.at("adapter_rank")},
       {"intermediate_size", ffn.at("size")},
       {"hidden_act", write_activation(ffn.at("activation"))},
       {"num_mem_blocks", std::max(json.value("num_mem_blocks", int64_t{1}), side.shared)}});
  if (!attention.at("rope").is_null()) {
    json.update(write_rope(attention.at("rope"), attention.at("head_dim"), context));
  }
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = layer_blocks(config);
  nlohmann::json json = {{"model_type", "zamba2"},
                         {"architectures", {"Zamba2ForCausalLM"}},
                         {"vocab_size", config.vocab_size},
                         {"hidden_size", config.hidden_size},
                         {"num_hidden_layers", config.block_count()},
                         {"tie_word_embeddings", config.tie_embeddings},
                         {"rms_norm_eps", kNormEpsilon},
                         {"layers_block_type", nlohmann::json::array()},
                         {"torch_dtype", "float32"}};
  json.update(write_trained_context(config));
  for (const BlockConfig* layer : layers) {
    if (layer->mixers.size() != 1 || layer->mixers.front().at("type") != "mamba2") return {};
    json["layers_block_type"].push_back(layer->side ? "hybrid" : "linear_attention");
    if (!layer->side) continue;
    if (layer->side->feed_forward.at("type") != "glu") return {};
    write_side(json, *layer->side, config.context);
  }
  if (!json.contains("num_mem_blocks")) return {};
  const nlohmann::json& mamba2 = layers.front()->mixers.front();
  const int64_t heads = mamba2.at("heads");
  json.update({{"n_mamba_heads", heads},
               {"mamba_expand", heads * mamba2.at("head_dim").get<int64_t>() / config.hidden_size},
               {"mamba_ngroups", mamba2.at("groups")},
               {"mamba_d_state", mamba2.at("state")},
               {"mamba_d_conv", mamba2.at("conv_kernel")},
               {"add_bias_linear", mamba2.at("bias")}});
  for (const char* key : {"time_step_min", "time_step_max", "time_step_floor"}) {
    json[key] = mamba2.at(key);
  }
  return json;
}

// The rules of a layer's side, the model's side number `use`. theirs: where its shared block is
// published.
void add_side_rules(std::vector<TensorRule>& rules, const std::string& ours,
                    const std::string& theirs, int64_t use) {
  const std::string mlp = theirs + "feed_forward.gate_up_proj", ffn = ours + "ffn.";
  const std::string adapter = fmt::format("{}_adapter_list.{}.", mlp, use);
  for (const char* name : {"q", "k", "v"}) {
    rules.push_back({{fmt::format("{}mixer.{}_adapter.*", ours, name)},
                     {fmt::format("{}self_attn.linear_{}_adapter_list.{}.*", theirs, name, use)},
                     {}});
  }
  const std::vector<TensorRule> rest = {
      {{ffn + "adapter.0.weight"}, {adapter + "0.weight"}, {}},
      {{ffn + "gate_adapter.1.weight", ffn + "up_adapter.1.weight"},
       {adapter + "1.weight"},
       transforms::split()},
      {{ffn + "gate_proj.weight", ffn + "up_proj.weight"}, {mlp + ".weight"}, transforms::split()},
      {{ffn + "gate_proj.bias", ffn + "up_proj.bias"}, {mlp + ".bias"}, transforms::split()},
      {{ffn + "down_proj.*"}, {theirs + "feed_forward.down_proj.*"}, {}},
      {{ours + "norm.*"}, {theirs + "input_layernorm.*"}, {}},
      {{ours + "ffn_norm.*"}, {theirs + "pre_ff_layernorm.*"}, {}},
      {{ours + "mixer.*"}, {theirs + "self_attn.*"}, {}}};
  rules.insert(rules.end(), rest.begin(), rest.end());
}

TensorRules tensors(const ModelConfig& config) {
  TensorRules tensors;
  int64_t number = 0, uses = 0;
  for (const BlockConfig* layer : layer_blocks(config)) {
    const std::string ours = fmt::format("layers.{}.", number);
    const std::string theirs = fmt::format("model.layers.{}.", number);
    std::string mamba = theirs;
    if (layer->side) {
      mamba += "mamba_decoder.";
      const int64_t owner = config.side_owner(number);
      tensors.rules.push_back({{ours + "side.linear.weight"}, {theirs + "linear.weight"}, {}});
      add_side_rules(tensors.rules, ours + "side.",
                     fmt::format("model.layers.{}.shared_transformer.", owner), uses++);
      // Some tools store shared weights wherever they are used.
      if (owner != number) tensors.passed_over.push_back(theirs + "shared_transformer.*");
    }
    const std::vector<TensorRule> rest = {
        {{ours + "mixer_norm.*"}, {mamba + "input_layernorm.*"}, {}},
        {{ours + "mixer.conv1d.weight"}, {mamba + "mamba.conv1d.weight"}, transforms::squeeze(1)},
        {{ours + "mixer.*"}, {mamba + "mamba.*"}, {}}};
    tensors.rules.insert(tensors.rules.end(), rest.begin(), rest.end());
    ++number;
  }
  const std::vector<TensorRule> rest = {{{"embeddings.weight"}, {"model.embed_tokens.weight"}, {}},
                                        {{"norm.*"}, {"model.final_layernorm.*"}, {}},
                                        {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  tensors.rules.insert(tensors.rules.end(), rest.begin(), rest.end());
  for (std::string& name : tied_head(config, "lm_head.weight")) {
    tensors.passed_over.push_back(std::move(name));
  }
  return tensors;
}

}  // namespace

Family zamba2_family() { return {"zamba2", read, write, tensors}; }

}  // namespace pronghorn
