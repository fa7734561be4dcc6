// GGUF files of Qwen's hybrids.
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "model/families/gguf_experts.h"
#include "model/families/gguf_hybrid.h"
#include "model/families/mixture.h"
#include "model/families/predictor.h"
#include "model/families/qwen_hybrid.h"

namespace pronghorn {
namespace {

constexpr const char *kRecurrent = "attention.recurrent_layers",
                     *kInterval = "full_attention_interval", *kSections = "rope.dimension_sections";

// Those of the list, or each but the last of every interval; heads for multi-token prediction
// follow, as layers of attention.
std::vector<bool> read_attention(const GgufModel& file, int64_t layers, int64_t heads) {
  const GgufMetadata& metadata = file.metadata;
  const std::string key = file.key(kRecurrent);
  std::vector<bool> attention;
  if (const GgufValue* value = metadata.find(key)) {
    require(value->kind() == GgufKind::array && value->element() == GgufKind::boolean &&
                std::cmp_equal(value->count(), layers + heads),
            metadata.path(key), "{} where there are {} layers", value->description(),
            layers + heads);
    for (const std::byte recurrent : value->bytes().first(static_cast<size_t>(layers))) {
      attention.push_back(recurrent == std::byte{0});
    }
    return attention;
  }
  const int64_t interval = metadata.integer(file.key(kInterval), 4, 1);
  for (int64_t i = 0; i < layers; ++i) attention.push_back((i + 1) % interval == 0);
  return attention;
}

// Of a DeltaNet with `key_heads` heads, each with `each` value heads.
std::vector<TensorRule> delta_net_rules(int64_t key_heads, int64_t each, bool interleaved,
                                        bool dealt) {
  const bool reordered = !interleaved && each > 1;
  const auto of_values = [&](size_t first = 0) {
    return reordered ? transforms::deal(each, key_heads, first) : Transform();
  };
  const Transform three = transforms::split().then(of_values(2));
  std::vector<TensorRule> rules = {
      {{"q_proj.weight", "k_proj.weight", "v_proj.weight"}, {"attn_qkv.weight"}, three},
      {{"g_proj.weight"}, {"attn_gate.weight"}, of_values()},
      {{"q_conv1d.weight", "k_conv1d.weight", "v_conv1d.weight"}, {"ssm_conv1d.weight"}, three},
      {{"A_log"}, {"ssm_a"}, of_values().then(transforms::log_of_negated())},
      {{"dt_bias"}, {"ssm_dt.bias"}, of_values()},
      {{"o_norm.weight"}, {"ssm_norm.weight"}, {}},
      {{"o_proj.weight"},
       {"ssm_out.weight"},
       reordered && !dealt ? transforms::deal_columns(each, key_heads) : Transform()}};
  if (interleaved) {
    rules.push_back(
        {{"b_proj.weight", "a_proj.weight"}, {"ssm_ba.weight"}, transforms::split(0, key_heads)});
  } else {
    rules.push_back({{"a_proj.weight"}, {"ssm_alpha.weight"}, of_values()});
    rules.push_back({{"b_proj.weight"}, {"ssm_beta.weight"}, of_values()});
  }
  return rules;
}

}  // namespace

std::vector<GgufKey> qwen_gguf_keys(const std::vector<GgufKey>& more) {
  std::vector<GgufKey> keys = {{"ssm.conv_kernel", "linear_conv_kernel_dim"},
                               {"ssm.state_size", "linear_key_head_dim"},
                               {"ssm.group_count", "linear_num_key_heads"},
                               {"ssm.time_step_rank", "linear_num_value_heads"}};
  keys.insert(keys.end(), more.begin(), more.end());
  return gguf_decoder_keys(keys);
}

std::vector<GgufKey> qwen_gguf_expert_keys() {
  std::vector<GgufKey> keys = gguf_expert_keys("num_experts");
  keys.insert(keys.end(),
              {{"feed_forward_length", "intermediate_size", GgufKind::u32, false},
               {"expert_feed_forward_length", "moe_intermediate_size"},
               {"expert_shared_feed_forward_length", "shared_expert_intermediate_size"}});
  return keys;
}

std::vector<std::string_view> qwen_gguf_other_keys() {
  // The sections of rotary positions matter to images; a text has the same position in all.
  return gguf_hybrid_other_keys(
      {"ssm.inner_size", kRecurrent, kInterval, kGgufPredictors, kSections});
}

void read_qwen_gguf(const GgufModel& file, nlohmann::json& config) {
  const GgufMetadata& metadata = file.metadata;
  const auto all = config.at("num_hidden_layers").get<int64_t>();
  read_gguf_predictors(file, kQwenPredictors, config, 1);
  const auto layers = config.at("num_hidden_layers").get<int64_t>();
  require(layers <= kMaxBlocks, metadata.path(file.key("block_count")), "{} layers", all);
  read_gguf_attention(file, config);
  if (!config.contains("partial_rotary_factor")) config["partial_rotary_factor"] = 1.0;
  const int64_t head_dim = read_gguf_state_head_dim(file);
  config["linear_value_head_dim"] = head_dim;
  config["layer_types"] = nlohmann::json::array();
  for (const bool attention : read_attention(file, layers, all - layers)) {
    config["layer_types"].push_back(attention ? "full_attention" : "linear_attention");
  }
}

void write_qwen_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_gguf_attention(config, json, file);
  const nlohmann::json& mixer = *mixers_of(config, "gated_deltanet").front();
  write_gguf_inner_size(
      mixer.at("value_heads").get<int64_t>() * mixer.at("value_head_dim").get<int64_t>(), file);
  std::vector<bool> recurrent;
  for (const nlohmann::json& type : json.at("layer_types")) {
    recurrent.push_back(type != "full_attention");
  }
  recurrent.resize(recurrent.size() + static_cast<size_t>(config.mtp.heads), false);
  file.metadata.set(file.key(kRecurrent), GgufValue::booleans(recurrent));
  write_gguf_predictors(config, file);
}

namespace {

TensorRules layer_tensors(const ModelConfig& config, bool interleaved) {
  const int64_t heads = first_of(config, "attention", "heads");
  const int64_t key_heads = first_of(config, "gated_deltanet", "heads");
  const int64_t each = first_of(config, "gated_deltanet", "value_heads") / key_heads;
  TensorRules tensors = gguf_hybrid_tensors(
      config, {},
      {{"attention",
        "",
        {{{"q_proj.weight", "g_proj.weight"}, {"attn_q.weight"}, transforms::split(0, heads)}}},
       {"gated_deltanet", "",
        delta_net_rules(key_heads, each, interleaved, has_dealt_heads(config))}});
  tensors = with_rules(std::move(tensors),
                       {{{"layers.*.ffn_norm.weight"}, {"blk.*.post_attention_norm.weight"}, {}}});
  return with_gguf_experts(std::move(tensors), config);
}

}  // namespace

TensorRules qwen_gguf_tensors(const ModelConfig& config, bool interleaved) {
  return with_gguf_predictors(
      config, [&](const ModelConfig& some) { return layer_tensors(some, interleaved); });
}

namespace {

// Heads that are not whole blocks of the output projection cannot be moved: the model holds them as
// the files do.
void read_output_order(const GgufModel& file, nlohmann::json& config) {
  const auto head_dim = config.at("linear_value_head_dim").get<int64_t>();
  const bool one_each = config.at("linear_num_value_heads") == config.at("linear_num_key_heads");
  const bool whole = std::ranges::all_of(file.blocks, [&](const auto& tensor) {
    return !tensor.first.ends_with(".ssm_out.weight") || head_dim % tensor.second == 0;
  });
  if (!whole && !one_each) config[kQwenOutputOrder] = "dealt";
}

// What files say of it.
ModelConfig with_grouped_heads(ModelConfig config) {
  for (auto& [letter, block] : config.blocks) {
    for (nlohmann::json& mixer : block.mixers) {
      if (mixer.at("type") == "gated_deltanet") mixer["output_order"] = "grouped";
    }
  }
  return config;
}

void read_qwen3_5(const GgufModel& file, nlohmann::json& config) {
  read_qwen_gguf(file, config);
  read_output_order(file, config);
}

// llama.cpp asks for the sections of rotary positions.
void write_qwen3_5(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  constexpr int32_t kPublished[] = {11, 11, 10, 0};
  write_qwen_gguf(config, json, file);
  file.metadata.set(file.key(kSections), GgufValue::i32s(kPublished));
}

TensorRules qwen3_5_tensors(const ModelConfig& config) { return qwen_gguf_tensors(config, false); }

}  // namespace

GgufFormat qwen3_5_gguf(std::string_view architecture, const std::vector<GgufKey>& more) {
  return {architecture,
          qwen_gguf_keys(more),
          qwen_gguf_other_keys(),
          read_qwen3_5,
          write_qwen3_5,
          qwen3_5_tensors,
          {},
          nullptr,
          with_grouped_heads};
}

}  // namespace pronghorn
