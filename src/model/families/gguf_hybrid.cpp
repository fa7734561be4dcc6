#include "model/families/gguf_hybrid.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "model/families/mapping.h"

namespace pronghorn {
namespace {

constexpr const char* kHeads = "attention.head_count_kv";

}  // namespace

std::vector<GgufKey> gguf_hybrid_keys(const std::vector<GgufKey>& more) {
  std::vector<GgufKey> all = {{kHeads, "num_key_value_heads", GgufKind::u32, true, true}};
  all.insert(all.end(), more.begin(), more.end());
  return gguf_decoder_keys(all);
}

std::vector<std::string_view> gguf_hybrid_other_keys(const std::vector<std::string_view>& more) {
  std::vector<std::string_view> keys = gguf_decoder_other_keys();
  keys.insert(keys.end(), more.begin(), more.end());
  return keys;
}

std::vector<bool> read_gguf_attention_layers(const GgufModel& file, const nlohmann::json& config) {
  const GgufMetadata& metadata = file.metadata;
  const std::string key = file.key(kHeads);
  const auto layers = config.at("num_hidden_layers").get<int64_t>();
  std::vector<bool> attention;
  const GgufValue* value = metadata.find(key);
  if (value == nullptr || value->kind() != GgufKind::array) {
    require(layers <= kMaxBlocks, metadata.path(file.key("block_count")), "{} layers", layers);
    attention.assign(static_cast<size_t>(layers), true);
    return attention;
  }
  for (const int64_t heads : metadata.integers(key)) attention.push_back(heads != 0);
  require(std::ssize(attention) == layers, metadata.path(key), "{} where there are {} layers",
          value->description(), layers);
  require(std::ranges::count(attention, true) > 0, metadata.path(key),
          "no layer has key/value heads");
  return attention;
}

void read_gguf_layer_types(const GgufModel& file, const std::string& other,
                           nlohmann::json& config) {
  config["layer_types"] = nlohmann::json::array();
  for (const bool attention : read_gguf_attention_layers(file, config)) {
    config["layer_types"].push_back(attention ? "full_attention" : other);
  }
}

GgufValue gguf_by_layer(const std::vector<bool>& layers, const nlohmann::json& value) {
  std::vector<int32_t> values;
  for (const bool has : layers) values.push_back(has ? value.get<int32_t>() : 0);
  return GgufValue::i32s(values);
}

void write_gguf_attention_layers(const ModelConfig& config, GgufModel& file) {
  std::vector<bool> attention;
  for (const BlockConfig* block : layer_blocks(config)) {
    attention.push_back(!block->mixers.empty() && block->mixers.front().at("type") == "attention");
  }
  file.metadata.set(
      file.key(kHeads),
      gguf_by_layer(attention, mixers_of(config, "attention").front()->at("kv_heads")));
}

int64_t read_gguf_state_head_dim(const GgufModel& file) {
  const std::string inner = file.key("ssm.inner_size");
  const int64_t channels = file.metadata.integer(inner, {}, 1);
  const int64_t heads = file.metadata.integer(file.key("ssm.time_step_rank"), {}, 1);
  require(channels % heads == 0, file.metadata.path(inner), "{} channels are not {} heads",
          channels, heads);
  return channels / heads;
}

void write_gguf_inner_size(int64_t channels, GgufModel& file) {
  file.metadata.set(file.key("ssm.inner_size"), GgufValue::u32(static_cast<uint32_t>(channels)));
}

std::vector<GgufKey> gguf_mamba2_keys() {
  return {{"ssm.conv_kernel", "mamba_d_conv"},
          {"ssm.state_size", "mamba_d_state"},
          {"ssm.group_count", "mamba_n_groups"},
          {"ssm.time_step_rank", "mamba_n_heads"}};
}

void read_gguf_mamba2(const GgufModel& file, nlohmann::json& config) {
  const int64_t head_dim = read_gguf_state_head_dim(file);
  const std::string inner = file.key("ssm.inner_size");
  const int64_t channels = file.metadata.integer(inner);
  const auto hidden = std::max<int64_t>(1, config.at("hidden_size").get<int64_t>());
  config["mamba_d_head"] = head_dim;
  config["mamba_expand"] = std::max<int64_t>(1, channels / hidden);
  config["mamba_conv_bias"] = true;
}

void write_gguf_mamba2(const ModelConfig& config, GgufModel& file) {
  const nlohmann::json& mixer = *mixers_of(config, "mamba2").front();
  write_gguf_inner_size(mixer.at("heads").get<int64_t>() * mixer.at("head_dim").get<int64_t>(),
                        file);
}

void write_gguf_mamba2_hybrid(const ModelConfig& config, const nlohmann::json& json,
                              GgufModel& file) {
  write_gguf_attention(config, json, file);
  write_gguf_attention_layers(config, file);
  write_gguf_mamba2(config, file);
}

bool gguf_is_bamba(const GgufModel& file) {
  const auto number = [&](const char* key) {
    const GgufValue* value = file.metadata.find(file.key(key));
    return value == nullptr ? 0.0 : value->as_number().value_or(0.0);
  };
  const double heads = number("attention.head_count");
  double head_dim = number("attention.key_length");
  if (head_dim == 0 && heads > 0) head_dim = number("embedding_length") / heads;
  return file.metadata.boolean(file.key(kGgufTurned), true) && head_dim > 0 &&
         2 * number("rope.dimension_count") == head_dim;
}

std::vector<TensorRule> gguf_mamba_rules() {
  return {{{"in_proj.weight"}, {"ssm_in.weight"}, {}},
          {{"conv1d.*"}, {"ssm_conv1d.*"}, {}},
          {{"x_proj.weight"}, {"ssm_x.weight"}, {}},
          {{"dt_proj.*"}, {"ssm_dt.*"}, {}},
          {{"dt_layernorm.weight"}, {"ssm_dt_norm.weight"}, {}},
          {{"b_layernorm.weight"}, {"ssm_b_norm.weight"}, {}},
          {{"c_layernorm.weight"}, {"ssm_c_norm.weight"}, {}},
          {{"A_log"}, {"ssm_a"}, transforms::log_of_negated()},
          {{"D"}, {"ssm_d"}, {}},
          {{"out_proj.weight"}, {"ssm_out.weight"}, {}}};
}

std::vector<TensorRule> gguf_mamba2_rules(const ModelConfig& config) {
  const std::vector<const nlohmann::json*> mixers = mixers_of(config, "mamba2");
  const int64_t groups = mixers.empty() ? 1 : mixers.front()->at("groups").get<int64_t>();
  const Transform column = transforms::squeeze(1);
  return {{{"in_proj.weight"}, {"ssm_in.weight"}, {}},
          {{"conv1d.*"}, {"ssm_conv1d.*"}, {}},
          {{"dt_bias"}, {"ssm_dt.bias"}, {}},
          {{"A_log"}, {"ssm_a"}, column.then(transforms::log_of_negated())},
          {{"D"}, {"ssm_d"}, column},
          {{"norm.weight"}, {"ssm_norm.weight"}, transforms::fold(groups)},
          {{"out_proj.weight"}, {"ssm_out.weight"}, {}}};
}

TensorRules gguf_hybrid_tensors(const ModelConfig& config, const GgufTensors& options,
                                std::vector<MixerTensors> others) {
  TensorRules tensors = gguf_layer_tensors(options);
  const std::vector<const nlohmann::json*> attention = mixers_of(config, "attention");
  if (!attention.empty()) {
    const std::vector<TensorRule> shared = gguf_attention_rules(*attention.front(), options);
    const auto own = std::ranges::find(others, "attention", &MixerTensors::type);
    if (own == others.end()) {
      others.push_back({"attention", "", shared});
    } else {
      own->rules.insert(own->rules.end(), shared.begin(), shared.end());
    }
  }
  for (TensorRule& rule : mixer_rules(config, "blk", others)) {
    tensors.rules.push_back(std::move(rule));
  }
  return tensors;
}

}  // namespace pronghorn
