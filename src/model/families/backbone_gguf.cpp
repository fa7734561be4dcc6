// GGUF files of the Mamba families.
#include <algorithm>

#include "base/error.h"
#include "model/families/backbone.h"
#include "model/families/gguf_hybrid.h"

namespace pronghorn {
namespace {

constexpr const char *kContext = "context_length", *kInner = "ssm.inner_size",
                     *kNorms = "ssm.dt_b_c_rms";
// What files say that know of no context.
constexpr uint32_t kAnyContext = 1 << 20;

bool has_inner_norms(const GgufModel& file) {
  return file.metadata.boolean(file.key(kNorms), false);
}

bool has_no_inner_norms(const GgufModel& file) { return !has_inner_norms(file); }

void write_mamba(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_backbone_gguf(json, file);
  const bool norms = mixers_of(config, "mamba").front()->at("inner_norms") != "none";
  file.metadata.set(file.key(kNorms), GgufValue::boolean(norms));
}

TensorRules mamba_tensors(const ModelConfig& config) {
  return gguf_hybrid_tensors(config, {}, {{"mamba", "", gguf_mamba_rules()}});
}

}  // namespace

std::vector<GgufKey> backbone_gguf_keys(const std::vector<GgufKey>& more) {
  std::vector<GgufKey> keys = {
      {"block_count", "num_hidden_layers"},
      {"embedding_length", "hidden_size"},
      {"attention.layer_norm_rms_epsilon", "layer_norm_epsilon", GgufKind::f32},
      {"ssm.conv_kernel", "conv_kernel"},
      {"ssm.state_size", "state_size"}};
  keys.insert(keys.end(), more.begin(), more.end());
  return keys;
}

std::vector<std::string_view> backbone_gguf_other_keys() {
  return {kContext,
          "feed_forward_length",
          "attention.head_count",
          "attention.causal",
          "vocab_size",
          kInner,
          kNorms};
}

void read_backbone_gguf(const GgufModel& file, nlohmann::json& config) {
  const GgufMetadata& metadata = file.metadata;
  const int64_t context = metadata.integer(file.key(kContext), kAnyContext, 0);
  if (context != kAnyContext && context > 0) config["max_position_embeddings"] = context;
  const int64_t inner = metadata.integer(file.key(kInner), {}, 1);
  const auto hidden = std::max<int64_t>(1, config.at("hidden_size").get<int64_t>());
  config["expand"] = static_cast<double>(inner) / static_cast<double>(hidden);
  config["use_conv_bias"] = true;
}

void write_backbone_gguf(const nlohmann::json& json, GgufModel& file) {
  const GgufValue none = GgufValue::u32(0);
  file.metadata.set(file.key(kContext),
                    GgufValue::u32(json.value("max_position_embeddings", kAnyContext)));
  file.metadata.set(file.key("feed_forward_length"), none);
  file.metadata.set(file.key("attention.head_count"), none);
  file.metadata.set(file.key("vocab_size"), GgufValue::u32(json.at("vocab_size").get<uint32_t>()));
}

GgufFormat mamba_gguf(bool inner_norms) {
  return {
      "mamba",
      backbone_gguf_keys({{kInner, "intermediate_size"}, {"ssm.time_step_rank", "time_step_rank"}}),
      backbone_gguf_other_keys(),
      read_backbone_gguf,
      write_mamba,
      mamba_tensors,
      {},
      inner_norms ? has_inner_norms : has_no_inner_norms};
}

}  // namespace pronghorn
