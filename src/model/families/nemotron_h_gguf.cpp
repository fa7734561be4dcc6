// GGUF files of Nemotron-H, and of the models of it that have experts, which are an architecture of
// their own there.
#include <algorithm>

#include "base/error.h"
#include "model/families/gguf_experts.h"
#include "model/families/gguf_heads.h"
#include "model/families/gguf_hybrid.h"
#include "model/families/mixture.h"
#include "model/families/nemotron_h.h"
#include "model/families/predictor.h"

namespace pronghorn {
namespace {

constexpr const char *kFfnSize = "feed_forward_length", *kLayers = "block_count",
                     *kNorm = "attention.layer_norm_rms_epsilon",
                     *kExpertSize = "moe_intermediate_size", *kNormalize = "norm_topk_prob",
                     *kSharedSize = "moe_shared_expert_intermediate_size",
                     *kLatentSize = "moe_latent_size", *kScale = "routed_scaling_factor";

std::vector<GgufKey> gguf_keys() {
  std::vector<GgufKey> keys = {
      {"context_length", "max_position_embeddings", GgufKind::u32, false},
      {"embedding_length", "hidden_size"},
      {kFfnSize, "intermediate_size", GgufKind::u32, false, true},
      {"attention.head_count", "num_attention_heads"},
      {"attention.head_count_kv", "num_key_value_heads", GgufKind::u32, true, true},
      {"attention.key_length", "head_dim"},
      {"attention.layer_norm_epsilon", "layer_norm_epsilon", GgufKind::f32},
      {"ssm.conv_kernel", "conv_kernel"},
      {"ssm.state_size", "ssm_state_size"},
      {"ssm.group_count", "n_groups"},
      {"ssm.time_step_rank", "mamba_num_heads"},
      {"expert_feed_forward_length", kExpertSize, GgufKind::u32, false, true},
      {"expert_shared_feed_forward_length", kSharedSize, GgufKind::u32, false},
      {"expert_shared_count", "n_shared_experts", GgufKind::u32, false},
      {"expert_weights_norm", kNormalize, GgufKind::boolean, false},
      {"expert_weights_scale", kScale, GgufKind::f32, false},
      {"expert_group_count", "n_group", GgufKind::u32, false},
      {"expert_group_used_count", "topk_group", GgufKind::u32, false},
      {"moe_latent_size", kLatentSize, GgufKind::u32, false}};
  const std::vector<GgufKey> experts = gguf_expert_keys(nemotron_h_keys::kExperts, false);
  keys.insert(keys.end(), experts.begin(), experts.end());
  return keys;
}

// Experts, in every feed-forward if in any: what older files do not say is in the tensors.
void read_gguf_experts(const GgufModel& file, nlohmann::json& config) {
  const std::string scores = file.key(kGgufScores);
  const int64_t said = file.metadata.integer(scores, gguf_scores::kNotSaid);
  require(said == gguf_scores::kNotSaid || said == gguf_scores::kSigmoid,
          file.metadata.path(scores), "{} is not what this family has", said);
  const auto unsaid = [&](const char* key) { return !config.contains(key) || config.at(key) == 0; };
  for (const auto& [tensor, key] :
       {std::pair("ffn_up_exps.weight", kExpertSize), std::pair("ffn_up_shexp.weight", kSharedSize),
        std::pair("ffn_latent_down.weight", kLatentSize)}) {
    if (!unsaid(key)) continue;
    config.erase(key);
    read_gguf_inner_size(file, tensor, key, config);
  }
  for (const char* key : {kScale, "n_group", "topk_group"}) {
    if (unsaid(key)) config[key] = 1;
  }
  if (!config.contains(kNormalize)) config[kNormalize] = false;
}

// A layer with a feed-forward has a size for it, one of attention has key/value heads, the others
// are Mamba-2. What follows them predicts further tokens, with both parts in one layer.
void read_gguf(const GgufModel& file, nlohmann::json& config) {
  const GgufMetadata& metadata = file.metadata;
  const std::string key = file.key(kFfnSize);
  config["num_hidden_layers"] = metadata.integer(file.key(kLayers), {}, 1, kMaxBlocks);
  const std::vector<bool> attention = read_gguf_attention_layers(file, config);
  const std::vector<int64_t> sizes = metadata.integers(key);
  require(sizes.size() == attention.size(), metadata.path(key),
          "{} sizes of feed-forwards where there are {} layers", sizes.size(), attention.size());
  read_gguf_predictors(file, nemotron_h_keys::kPredictors, config,
                       nemotron_h_keys::kMostPredictors);
  const bool experts = !gguf_without_experts(file);
  if (experts) read_gguf_experts(file, config);
  const std::string feed_forward = experts ? "moe" : "mlp";
  config["layers_block_type"] = nlohmann::json::array();
  for (size_t i = 0; i < config.at("num_hidden_layers").get<size_t>(); ++i) {
    require(sizes[i] == 0 || !attention[i], metadata.path(key),
            "layer {} is attention and has a feed-forward", i);
    config["layers_block_type"].push_back(sizes[i] != 0  ? feed_forward
                                          : attention[i] ? "full_attention"
                                                         : "linear_attention");
  }
  check_gguf_value_length(file, config.at("head_dim").get<int64_t>());
  config["mamba_head_dim"] = read_gguf_state_head_dim(file);
  config["mlp_bias"] = gguf_has_in_a_layer(file, "ffn_up.bias");
  if (metadata.has(file.key(kNorm))) {
    config["layer_norm_epsilon"] = decimal_number(metadata.number(file.key(kNorm)));
  }
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  const auto& kinds = json.at("layers_block_type");
  const auto mixers = mixers_of(config, "mamba2");
  require(!mixers.empty() && !mixers_of(config, "attention").empty(), file.metadata.where(),
          "files of the architecture nemotron_h have layers of Mamba-2 and of attention");
  std::vector<bool> feed_forwards;
  for (const nlohmann::json& kind : kinds) feed_forwards.push_back(kind == "mlp" || kind == "moe");
  const bool experts = has_experts(config);
  require(!experts || std::count(kinds.begin(), kinds.end(), "mlp") == 0, file.metadata.where(),
          "files of the architecture nemotron_h_moe have experts in every feed-forward");
  file.metadata.set(file.key(kLayers), GgufValue::u32(static_cast<uint32_t>(kinds.size())));
  file.metadata.set(
      file.key(kFfnSize),
      gguf_by_layer(feed_forwards, json.value(experts ? kExpertSize : "intermediate_size", 0)));
  file.metadata.set(file.key(kNorm), GgufValue::f32(config.norm_epsilon));
  write_gguf_mamba2_hybrid(config, json, file);
}

// The converter moves the pairs of rotary angles, although there are none.
TensorRules gguf_tensors(const ModelConfig& config) {
  const std::string ffn = "layers.*.ffn.";
  TensorRules tensors =
      with_rules(with_gguf_experts(gguf_hybrid_tensors(config, {.rope_pairs = true, .biases = true},
                                                       {{"mamba2", "", gguf_mamba2_rules(config)}}),
                                   config),
                 {{{"layers.*.ffn_norm.weight"}, {"blk.*.attn_norm.weight"}, {}},
                  {{ffn + "latent_in_proj.weight"}, {"blk.*.ffn_latent_down.weight"}, {}},
                  {{ffn + "latent_out_proj.weight"}, {"blk.*.ffn_latent_up.weight"}, {}}});
  for (int64_t head = 0; head < config.mtp.published; ++head) {
    tensors.passed_over.push_back(fmt::format("blk.{}.*", config.block_count() + head));
  }
  return tensors;
}

}  // namespace

const GgufFormat& nemotron_h_gguf() {
  static const GgufFormat gguf = {
      .architecture = "nemotron_h",
      .keys = gguf_keys(),
      // There are no positions.
      .other_keys = {kLayers, kNorm, kGgufScores, kGgufPredictors, "attention.value_length",
                     "attention.causal", "rope.dimension_count", "rope.freq_base", "ssm.inner_size",
                     "vocab_size"},
      .read = read_gguf,
      .write = write_gguf,
      .tensors = gguf_tensors,
      .with_experts = "nemotron_h_moe"};
  return gguf;
}

}  // namespace pronghorn
