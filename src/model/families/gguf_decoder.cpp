#include "model/families/gguf_decoder.h"

#include <algorithm>

#include "base/error.h"
#include "model/families/decoder.h"

namespace pronghorn {

std::vector<GgufKey> gguf_decoder_keys() {
  return {{"block_count", "num_hidden_layers"},
          {"context_length", "max_position_embeddings", GgufKind::u32, false},
          {"embedding_length", "hidden_size"},
          {"feed_forward_length", "intermediate_size"},
          {"attention.head_count", "num_attention_heads"},
          {"attention.head_count_kv", "num_key_value_heads", GgufKind::u32, false},
          {"attention.key_length", "head_dim", GgufKind::u32, false},
          {"attention.layer_norm_rms_epsilon", "rms_norm_eps", GgufKind::f32},
          {"rope.freq_base", "rope_theta", GgufKind::f32, false}};
}

std::vector<GgufKey> gguf_decoder_keys(const std::vector<GgufKey>& more) {
  std::vector<GgufKey> keys = gguf_decoder_keys();
  for (const GgufKey& key : more) {
    std::erase_if(keys, [&](const GgufKey& each) { return each.key == key.key; });
    keys.push_back(key);
  }
  return keys;
}

std::vector<std::string_view> gguf_decoder_other_keys() {
  return {"attention.value_length",
          "attention.causal",
          "rope.dimension_count",
          "vocab_size",
          "tensor_data_layout",
          "rope.scale_linear",
          "rope.scaling.type",
          "rope.scaling.factor",
          "rope.scaling.original_context_length",
          "rope.scaling.finetuned",
          "rope.scaling.attn_factor",
          "rope.scaling.yarn_ext_factor",
          "rope.scaling.yarn_attn_factor",
          "rope.scaling.yarn_beta_fast",
          "rope.scaling.yarn_beta_slow"};
}

bool gguf_has_in_a_layer(const GgufModel& file, std::string_view name) {
  const std::string end = fmt::format(".{}", name);
  return std::ranges::any_of(file.shapes, [&](const auto& tensor) {
    return tensor.first.starts_with("blk.") && tensor.first.ends_with(end);
  });
}

void read_gguf_biases(const GgufModel& file, nlohmann::json& config) {
  config["attention_bias"] = gguf_has_in_a_layer(file, "attn_q.bias");
  config["mlp_bias"] = gguf_has_in_a_layer(file, "ffn_up.bias");
}

namespace {

constexpr const char* kMaskToken = "tokenizer.ggml.mask_token_id";
constexpr const char* kShift = "diffusion.shift_logits";

}  // namespace

void read_gguf_diffusion(const GgufModel& file, int64_t fallback, bool shift,
                         nlohmann::json& config) {
  config["mask_token_id"] = file.metadata.integer(kMaskToken, fallback, 0);
  require(file.metadata.boolean(kShift, shift) == shift, file.metadata.path(kShift),
          "{} is not what models of this architecture do", !shift);
}

void write_gguf_diffusion(const ModelConfig& config, GgufModel& file) {
  file.metadata.set(file.key("attention.causal"), GgufValue::boolean(false));
  file.metadata.set(kShift, GgufValue::boolean(config.diffusion->shift));
  file.metadata.set(kMaskToken,
                    GgufValue::u32(static_cast<uint32_t>(config.diffusion->mask_token)));
}

namespace {

constexpr const char* kPattern = "attention.sliding_window_pattern";

std::vector<bool> periodic(int64_t layers, int64_t period) {
  std::vector<bool> windows;
  for (int64_t i = 0; i < layers; ++i) windows.push_back(period == 0 || i % period < period - 1);
  return windows;
}

nlohmann::json layer_types(const std::vector<bool>& windows) {
  nlohmann::json types;
  for (const bool window : windows) {
    types.push_back(window ? "sliding_attention" : "full_attention");
  }
  return types;
}

// A list of truth values, or of whole numbers that are 0 or not.
std::vector<bool> listed(const GgufMetadata& metadata, const std::string& key, int64_t layers) {
  const GgufValue& value = *metadata.find(key);
  std::vector<bool> windows;
  if (value.element() == GgufKind::boolean) {
    for (const std::byte truth : value.bytes()) windows.push_back(truth != std::byte{0});
  } else {
    for (const int64_t number : metadata.integers(key)) windows.push_back(number != 0);
  }
  require(std::ssize(windows) == layers, metadata.path(key), "{} where there are {} layers",
          value.description(), layers);
  return windows;
}

}  // namespace

void read_gguf_windows(const GgufModel& file, int64_t period, nlohmann::json& config) {
  const GgufMetadata& metadata = file.metadata;
  const auto layers = config.at("num_hidden_layers").get<int64_t>();
  const std::string key = file.key(kPattern);
  const GgufValue* value = metadata.find(key);
  std::vector<bool> windows = periodic(layers, value != nullptr && value->kind() != GgufKind::array
                                                   ? metadata.integer(key, {}, 0)
                                                   : period);
  if (value != nullptr && value->kind() == GgufKind::array) {
    windows = listed(metadata, key, layers);
  }
  config["layer_types"] = layer_types(windows);
}

void write_gguf_windows(const nlohmann::json& config, int64_t period, GgufModel& file) {
  const auto layers = config.at("num_hidden_layers").get<int64_t>();
  const nlohmann::json& types = config.at("layer_types");
  if (types == layer_types(periodic(layers, period))) return;
  std::vector<bool> windows;
  for (const nlohmann::json& type : types) windows.push_back(type == "sliding_attention");
  file.metadata.set(file.key(kPattern), GgufValue::booleans(windows));
}

std::vector<TensorRule> gguf_attention_rules(const nlohmann::json& mixer,
                                             const GgufTensors& options) {
  Transform query, key;
  if (options.rope_pairs) {
    query = transforms::rope_pairs(mixer.at("heads"));
    key = transforms::rope_pairs(mixer.at("kv_heads"));
  }
  const std::string any = options.biases ? "*" : "weight";
  return {{{"q_proj.*"}, {"attn_q.*"}, query},
          {{"k_proj.*"}, {"attn_k.*"}, key},
          {{"v_proj.*"}, {"attn_v.*"}, {}},
          {{"o_proj." + any}, {"attn_output." + any}, {}},
          {{"q_norm.weight"}, {"attn_q_norm.weight"}, {}},
          {{"k_norm.weight"}, {"attn_k_norm.weight"}, {}}};
}

TensorRules gguf_layer_tensors(const GgufTensors& options) {
  const std::string layer = "layers.*.", theirs = "blk.*.";
  const std::string any = options.biases ? "*" : "weight";
  TensorRules tensors;
  tensors.rules = {
      {{"embeddings.weight"}, {"token_embd.weight"}, {}},
      {{layer + "mixer_norm.weight"}, {theirs + "attn_norm.weight"}, {}},
      {{layer + "mixer_post_norm.weight"}, {theirs + "post_attention_norm.weight"}, {}},
      {{layer + "ffn_norm.weight"}, {theirs + options.ffn_norm + ".weight"}, {}},
      {{layer + "ffn.gate_proj." + any}, {theirs + "ffn_gate." + any}, {}},
      {{layer + "ffn.up_proj." + any}, {theirs + "ffn_up." + any}, {}},
      {{layer + "ffn.down_proj." + any}, {theirs + "ffn_down." + any}, {}},
      {{layer + "ffn_post_norm.weight"}, {theirs + "post_ffw_norm.weight"}, {}},
      {{"norm.weight"}, {"output_norm.weight"}, {}},
      {{"lm_head.weight"}, {"output.weight"}, {}},
  };
  if (options.rope_tables) tensors.passed_over = {"rope_freqs.weight", "rope_factors_*.weight"};
  return tensors;
}

TensorRules gguf_decoder_tensors(const ModelConfig& config, const GgufTensors& options) {
  TensorRules tensors = gguf_layer_tensors(options);
  const nlohmann::json& mixer = layer_blocks(config).front()->mixers.front();
  for (TensorRule& rule : gguf_attention_rules(mixer, options)) {
    rule.ours.front().insert(0, "layers.*.mixer.");
    rule.published.front().insert(0, "blk.*.");
    tensors.rules.push_back(std::move(rule));
  }
  return tensors;
}

TensorRules gguf_plain_tensors(const ModelConfig&) {
  const std::string layer = "layers.*.", theirs = "blk.*.";
  const auto qkv = [&](const std::string& kind) {
    return TensorRule{{layer + "mixer.q_proj." + kind, layer + "mixer.k_proj." + kind,
                       layer + "mixer.v_proj." + kind},
                      {theirs + "attn_qkv." + kind},
                      transforms::split()};
  };
  TensorRules tensors;
  tensors.rules = {{{"embeddings.weight"}, {"token_embd.weight"}, {}},
                   {{"positions.weight"}, {"position_embd.weight"}, {}},
                   {{layer + "mixer_norm.*"}, {theirs + "attn_norm.*"}, {}},
                   qkv("weight"),
                   qkv("bias"),
                   {{layer + "mixer.o_proj.*"}, {theirs + "attn_output.*"}, {}},
                   {{layer + "ffn_norm.*"}, {theirs + "ffn_norm.*"}, {}},
                   {{layer + "ffn.up_proj.*"}, {theirs + "ffn_up.*"}, {}},
                   {{layer + "ffn.down_proj.*"}, {theirs + "ffn_down.*"}, {}},
                   {{"norm.*"}, {"output_norm.*"}, {}},
                   {{"lm_head.weight"}, {"output.weight"}, {}}};
  return tensors;
}

}  // namespace pronghorn
