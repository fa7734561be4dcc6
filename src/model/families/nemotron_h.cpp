// The Nemotron-H family (arXiv 2504.03624; Nemotron 3): each layer is one part, Mamba-2, attention
// without positions, a feed-forward of two layers, or experts of that kind, which may work on a
// narrower vector.
#include <algorithm>

#include "base/error.h"
#include "layers/toolbox.h"
#include "model/families.h"
#include "model/families/backbone.h"
#include "model/families/deepseek.h"
#include "model/families/hybrid.h"
#include "model/families/nemotron_h.h"
#include "model/families/published_keys.h"

namespace pronghorn {
namespace {

// layers_block_type, or hybrid_override_pattern of older files: M, *, - and E for each layer.
std::vector<std::string> read_kinds(ConfigReader& reader) {
  const nlohmann::json& list = reader.raw("layers_block_type");
  nlohmann::json kinds = list;
  std::string key = "layers_block_type";
  if (list.is_null()) {
    key = "hybrid_override_pattern";
    for (const char letter : reader.string(key)) kinds.push_back(std::string(1, letter));
  }
  reader.ignore("hybrid_override_pattern");
  reader.ignore("num_hidden_layers");
  require(kinds.is_array() && !kinds.empty() && std::ssize(kinds) <= kMaxBlocks, reader.path(key),
          "must have an entry for each layer");
  std::vector<std::string> known;
  for (const nlohmann::json& kind : kinds) {
    if (kind == "linear_attention" || kind == "mamba" || kind == "M") {
      known.emplace_back("mamba2");
    } else if (kind == "full_attention" || kind == "attention" || kind == "*") {
      known.emplace_back("attention");
    } else if (kind == "mlp" || kind == "-") {
      known.emplace_back("mlp");
    } else if (kind == "moe" || kind == "E") {
      known.emplace_back("moe");
    } else {
      require(false, reader.path(key), "{} is no kind of layer", kind.dump());
    }
  }
  return known;
}

nlohmann::json read_mamba2(ConfigReader& reader) {
  const bool bias = reader.boolean("use_bias", false);
  const double least = reader.number("time_step_min", 0.001, 0);
  for (const char* key : {"chunk_size", "expand", "mamba_proj_bias", "time_step_limit",
                          "mamba_ssm_cache_dtype", "mamba_num_groups"}) {
    reader.ignore(key);
  }
  reader.one_of("mamba_hidden_act", {"silu"}, "silu");
  return {{"type", "mamba2"},
          {"heads", reader.integer("mamba_num_heads", 128, 1)},
          {"head_dim", reader.integer("mamba_head_dim", 64, 1)},
          {"groups", reader.integer("n_groups", 8, 1)},
          {"state", reader.integer("ssm_state_size", 128, 1)},
          {"conv_kernel", reader.integer("conv_kernel", 4, 1)},
          {"conv_bias", reader.boolean("use_conv_bias", true)},
          {"bias", bias},
          {"time_step_min", least},
          {"time_step_max", reader.number("time_step_max", 0.1)},
          {"time_step_floor", reader.number("time_step_floor", 1e-4)},
          // The reference's limits, whatever the configuration says.
          {"time_step_limit", {least, nullptr}}};
}

nlohmann::json read_attention(ConfigReader& reader) {
  require(!reader.boolean("attention_bias", false), reader.path("attention_bias"),
          "true is not what the reference computes");
  const int64_t heads = reader.integer("num_attention_heads", 32, 1);
  const int64_t older = reader.integer("attention_head_dim", 128, 1);
  return {{"type", "attention"},
          {"heads", heads},
          {"kv_heads", reader.integer("num_key_value_heads",
                                      is_null(reader, "num_key_value_heads") ? heads : 8, 1)},
          {"head_dim", reader.integer("head_dim", older, 1)}};
}

// The experts, where a layer has some; the keys are in the files of models without, too.
nlohmann::json read_moe(ConfigReader& reader, const std::string& activation, bool any) {
  constexpr double kMostScale = 1e4;
  constexpr int64_t kSize = 7688;
  for (const char* key : {"n_shared_experts", "moe_shared_expert_overlap", "mtp_layers_block_type",
                          "mtp_hybrid_override_pattern"}) {
    reader.ignore(key);
  }
  if (!any) {
    for (const char* key :
         {nemotron_h_keys::kExperts, "moe_intermediate_size", "moe_shared_expert_intermediate_size",
          "moe_latent_size", "num_experts_per_tok", "routed_scaling_factor", "n_group",
          "topk_group", "norm_topk_prob"}) {
      reader.ignore(key);
    }
    return {};
  }
  require(!reader.boolean("mlp_bias", false), reader.path("mlp_bias"),
          "true is not supported in a model with experts");
  nlohmann::json moe = read_corrected_router(reader, {});
  const int64_t experts = reader.integer(nemotron_h_keys::kExperts, 8, 1, limits::kExperts);
  moe.update({{"type", "moe"},
              {"gated", false},
              {"activation", activation},
              {"experts", experts},
              {"top_k", reader.integer("num_experts_per_tok", 2, 1, experts)},
              {"size", reader.integer("moe_intermediate_size", kSize, 1)},
              {"shared_size", reader.integer("moe_shared_expert_intermediate_size", kSize, 1)},
              {"latent_size", reader.integer("moe_latent_size", 0, 1)},
              {"scale", reader.number("routed_scaling_factor", 1.0, 0, kMostScale)}});
  return moe;
}

ModelConfig read(ConfigReader reader) {
  const std::vector<std::string> kinds = read_kinds(reader);
  const nlohmann::json mamba2 = read_mamba2(reader), attention = read_attention(reader);
  const std::string activation = read_activation(reader, "mlp_hidden_act", "relu2");
  const nlohmann::json moe = read_moe(reader, activation, std::ranges::count(kinds, "moe") > 0);
  const nlohmann::json ffn = plain_ffn(reader.integer("intermediate_size", 21504, 1), activation,
                                       reader.boolean("mlp_bias", false));
  nlohmann::json settings = {
      {"vocab_size", reader.integer("vocab_size", {}, 1)},
      {"hidden_size", reader.integer("hidden_size", {}, 1)},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", false)},
      {"norm", {{"type", "rms_norm"}, {"epsilon", reader.number("layer_norm_epsilon", 1e-5, 0)}}}};
  reader.ignore("rms_norm_eps");
  read_trained_context(reader, settings);
  const int64_t predictors =
      reader.integer(nemotron_h_keys::kPredictors, 0, 0, nemotron_h_keys::kMostPredictors);
  finish_published(reader);
  std::vector<nlohmann::json> layers;
  for (const std::string& kind : kinds) {
    if (kind == "mlp" || kind == "moe") {
      layers.push_back({{"ffn", kind == "moe" ? moe : ffn}});
    } else {
      layers.push_back({{"mixer", kind == "mamba2" ? mamba2 : attention}});
    }
  }
  ModelConfig config = layered_config(reader, std::move(settings), layers);
  config.mtp.published = predictors;  // which are passed over
  return config;
}

// The kind of a layer that is one part; empty: it is not.
std::string kind_of(const BlockConfig& block) {
  if (block.mixers.empty()) return block.feed_forward.at("type") == "moe" ? "moe" : "mlp";
  if (block.mixers.size() > 1 || !block.feed_forward.is_null()) return "";
  if (block.mixers.front().at("type") == "attention") return "full_attention";
  return block.mixers.front().at("type") == "mamba2" ? "linear_attention" : "";
}

void write_mixer(nlohmann::json& json, const nlohmann::json& mixer) {
  if (mixer.at("type") == "attention") {
    json["num_attention_heads"] = mixer.at("heads");
    json["num_key_value_heads"] = mixer.at("kv_heads");
    json["head_dim"] = mixer.at("head_dim");
    return;
  }
  json["mamba_num_heads"] = mixer.at("heads");
  json["mamba_head_dim"] = mixer.at("head_dim");
  json["n_groups"] = mixer.at("groups");
  json["ssm_state_size"] = mixer.at("state");
  json["conv_kernel"] = mixer.at("conv_kernel");
  json["use_conv_bias"] = mixer.at("conv_bias");
  json["use_bias"] = mixer.at("bias");
  for (const char* key : {"time_step_min", "time_step_max", "time_step_floor"}) {
    json[key] = mixer.at(key);
  }
}

void write_feed_forward(nlohmann::json& json, const nlohmann::json& ffn) {
  if (ffn.at("type") == "moe") {
    json.update({{nemotron_h_keys::kExperts, ffn.at("experts")},
                 {"num_experts_per_tok", ffn.at("top_k")},
                 {"moe_intermediate_size", ffn.at("size")},
                 {"moe_shared_expert_intermediate_size", ffn.at("shared_size")},
                 {"n_shared_experts", 1},
                 {"routed_scaling_factor", ffn.at("scale")},
                 {"norm_topk_prob", ffn.at("normalize")},
                 {"n_group", ffn.at("groups")},
                 {"topk_group", ffn.at("top_groups")},
                 {"mlp_hidden_act", write_activation(ffn.at("activation"))}});
    if (ffn.at("latent_size") > 0) json["moe_latent_size"] = ffn.at("latent_size");
    return;
  }
  json["intermediate_size"] = ffn.at("size");
  json["mlp_hidden_act"] = write_activation(activation_of(ffn));
  json["mlp_bias"] = has_bias(ffn);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = layer_blocks(config);
  if (layers.empty()) return {};
  nlohmann::json json = {{"model_type", "nemotron_h"},
                         {"architectures", {"NemotronHForCausalLM"}},
                         {"vocab_size", config.vocab_size},
                         {"hidden_size", config.hidden_size},
                         {"tie_word_embeddings", config.tie_embeddings},
                         {"layer_norm_epsilon", config.norm_epsilon},
                         {"layers_block_type", nlohmann::json::array()},
                         {"torch_dtype", "float32"}};
  for (const BlockConfig* layer : layers) {
    const std::string kind = kind_of(*layer);
    if (kind.empty()) return {};
    json["layers_block_type"].push_back(kind);
    if (!layer->mixers.empty()) {
      write_mixer(json, layer->mixers.front());
      continue;
    }
    if (!is_decoder_ffn(layer->feed_forward)) return {};
    write_feed_forward(json, layer->feed_forward);
  }
  json.update(write_trained_context(config));
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  TensorRules tensors = backbone_tensors(config);
  const std::string layer = "layers.*.", theirs = "backbone.layers.*.";
  const std::vector<TensorRule> own = {
      {{layer + "ffn_norm.*"}, {theirs + "norm.*"}, {}},
      {{layer + "ffn.shared_expert.*"}, {theirs + "mixer.shared_experts.*"}, {}},
      {{layer + "ffn.latent_in_proj.*"}, {theirs + "mixer.fc1_latent_proj.*"}, {}},
      {{layer + "ffn.latent_out_proj.*"}, {theirs + "mixer.fc2_latent_proj.*"}, {}},
      {{layer + "ffn.*"}, {theirs + "mixer.*"}, {}}};
  tensors.rules.insert(tensors.rules.begin(), own.begin(), own.end());
  tensors.passed_over.emplace_back("mtp.*");
  return tensors;
}

}  // namespace

Family nemotron_h_family() { return {"nemotron_h", read, write, tensors, &nemotron_h_gguf()}; }

}  // namespace pronghorn
