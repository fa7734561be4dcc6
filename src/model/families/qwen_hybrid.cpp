#include "model/families/qwen_hybrid.h"

#include <utility>

#include "base/error.h"
#include "model/families/mixture.h"
#include "model/families/predictor.h"

namespace pronghorn {
namespace {

nlohmann::json read_delta_net(ConfigReader& reader) {
  return {{"type", "gated_deltanet"},
          {"heads", reader.integer("linear_num_key_heads", 16, 1)},
          {"value_heads", reader.integer("linear_num_value_heads", 32, 1)},
          {"head_dim", reader.integer("linear_key_head_dim", 128, 1)},
          {"value_head_dim", reader.integer("linear_value_head_dim", 128, 1)},
          {"conv_kernel", reader.integer("linear_conv_kernel_dim", 4, 1)},
          {"output_order", reader.one_of(kQwenOutputOrder, {"grouped", "dealt"}, "grouped")}};
}

// What a DeltaNet's projections are published as: queries, keys and values one after another, or
// with the gate, key head by key head.
std::vector<TensorRule> projection_rules(int64_t key_heads, bool fused) {
  if (fused) {
    return {{{"q_proj.weight", "k_proj.weight", "v_proj.weight", "g_proj.weight"},
             {"in_proj_qkvz.weight"},
             transforms::split(0, key_heads)},
            {{"b_proj.weight", "a_proj.weight"},
             {"in_proj_ba.weight"},
             transforms::split(0, key_heads)}};
  }
  return {{{"q_proj.weight", "k_proj.weight", "v_proj.weight"},
           {"in_proj_qkv.weight"},
           transforms::split()},
          {{"g_proj.weight"}, {"in_proj_z.weight"}, {}},
          {{"a_proj.weight"}, {"in_proj_a.weight"}, {}},
          {{"b_proj.weight"}, {"in_proj_b.weight"}, {}}};
}

// Queries and their gates lie head by head.
std::vector<MixerTensors> mixer_tensors(int64_t heads, int64_t key_heads, bool fused,
                                        const Transform& output) {
  const Transform less_one = transforms::plus(1);
  const auto q_and_gate = [&](const std::string& kind) {
    return TensorRule{
        {"q_proj." + kind, "g_proj." + kind}, {"q_proj." + kind}, transforms::split(0, heads)};
  };
  std::vector<TensorRule> recurrent = projection_rules(key_heads, fused);
  recurrent.push_back({{"q_conv1d.weight", "k_conv1d.weight", "v_conv1d.weight"},
                       {"conv1d.weight"},
                       transforms::squeeze(1).then(transforms::split())});
  recurrent.push_back({{"o_norm.weight"}, {"norm.weight"}, {}});
  recurrent.push_back({{"o_proj.weight"}, {"out_proj.weight"}, output});
  return {{"attention",
           "self_attn",
           {q_and_gate("weight"),
            q_and_gate("bias"),
            {{"q_norm.weight"}, {"q_norm.weight"}, less_one},
            {{"k_norm.weight"}, {"k_norm.weight"}, less_one}}},
          {"gated_deltanet", "linear_attn", std::move(recurrent)}};
}

}  // namespace

int64_t first_of(const ModelConfig& config, const std::string& type, const char* key) {
  const auto mixers = mixers_of(config, type);
  return mixers.empty() ? 1 : mixers.front()->at(key).get<int64_t>();
}

bool has_dealt_heads(const ModelConfig& config) {
  const auto mixers = mixers_of(config, "gated_deltanet");
  return !mixers.empty() && mixers.front()->at("output_order") == "dealt";
}

HybridDecoder read_qwen_hybrid(ConfigReader& reader, int64_t size, int64_t predictors) {
  HybridDecoder result;
  DecoderDefaults defaults{.kv_heads = 4, .head_dim = 256, .size = size};
  defaults.rope.partial = 0.25;
  defaults.rope.has_partial = true;
  Decoder& decoder = result.decoder;
  decoder = read_decoder(reader, defaults);
  decoder.mixer["qk_norm"] = true;
  decoder.mixer["gate"] = true;
  read_attention_bias(reader, decoder);
  require(reader.boolean("attn_output_gate", true), reader.path("attn_output_gate"),
          "false is not supported");
  const int64_t interval = reader.integer("full_attention_interval", 4, 1);
  result.attention =
      read_attention_layers(reader, "layer_types", decoder.layers, {"linear_attention"},
                            [&](int64_t layer) { return (layer + 1) % interval == 0; });
  result.other = read_delta_net(reader);
  decoder.predictors = reader.integer(kQwenPredictors, predictors, 0, 1);
  require(!reader.boolean("mtp_use_dedicated_embeddings", false),
          reader.path("mtp_use_dedicated_embeddings"), "true is not supported");
  for (const char* key : {"mamba_ssm_dtype", "mlp_only_layers"}) reader.ignore(key);
  return result;
}

void read_qwen_experts(ConfigReader& reader, Decoder& decoder, int64_t experts, int64_t top_k,
                       std::vector<bool> sparse) {
  const nlohmann::json settings = {
      {"size", reader.integer("moe_intermediate_size", 512, 1)},
      {"normalize", reader.boolean("norm_topk_prob", true)},
      {"shared_size", reader.integer("shared_expert_intermediate_size", 512, 1)},
      {"shared_gate", true}};
  read_experts(reader, decoder, {"num_experts", experts, top_k}, settings, std::move(sparse));
}

nlohmann::json write_qwen_experts(const ModelConfig& config) {
  nlohmann::json json = write_experts(config, "num_experts");
  json["moe_intermediate_size"] = experts_of(config).at("size");
  json["norm_topk_prob"] = experts_of(config).at("normalize");
  json["shared_expert_intermediate_size"] = experts_of(config).at("shared_size");
  json.erase("intermediate_size");
  return json;
}

ConfigReader qwen_text(ConfigReader& whole) {
  whole.object("text_config");
  nlohmann::json text = whole.raw("text_config");
  if (!text.contains("tie_word_embeddings")) {
    text["tie_word_embeddings"] = whole.boolean("tie_word_embeddings", false);
  }
  return ConfigReader(std::move(text), whole.path("text_config"));
}

std::optional<nlohmann::json> write_qwen_whole(const ModelConfig& config,
                                               std::optional<nlohmann::json> text,
                                               const std::string& model_type,
                                               const std::string& architecture) {
  if (!text) return {};
  return nlohmann::json{{"model_type", model_type},
                        {"architectures", {architecture}},
                        {"tie_word_embeddings", config.tie_embeddings},
                        {"text_config", std::move(*text)}};
}

std::optional<nlohmann::json> write_qwen_hybrid(const ModelConfig& config,
                                                const std::string& model_type,
                                                const std::string& architecture) {
  const auto layers = hybrid_layers(config, "gated_deltanet");
  const auto recurrent = layers_with(layers, "gated_deltanet");
  if (recurrent.empty()) return {};
  const auto attention = layers_with(layers, "attention");
  nlohmann::json json = write_decoder(config, attention, model_type, architecture);
  if (!json.contains("rope_theta")) return {};
  // Its default is not 1. Older readers look beside the object, newer ones inside.
  const double share = json.value("partial_rotary_factor", 1.0);
  json["partial_rotary_factor"] = share;
  json["rope_parameters"] = {{"rope_type", "default"},
                             {"rope_theta", json.at("rope_theta")},
                             {"partial_rotary_factor", share}};
  json["attention_bias"] = attention.front()->mixers.front().at("bias");
  json.update(write_delta_net(recurrent.front()->mixers.front()));
  const nlohmann::json& order = recurrent.front()->mixers.front().at("output_order");
  if (order != "grouped") json[kQwenOutputOrder] = order;
  json["layer_types"] = write_layer_kinds(layers, "linear_attention");
  json[kQwenPredictors] = config.mtp.heads;
  return json;
}

namespace {

TensorRules layer_tensors(const ModelConfig& config, const std::string& model, bool fused) {
  const std::string layer = "layers.*.", theirs = model + ".layers.*.";
  const Transform less_one = transforms::plus(1);
  const int64_t key_heads = first_of(config, "gated_deltanet", "heads");
  const int64_t each = first_of(config, "gated_deltanet", "value_heads") / key_heads;
  const bool dealt = has_dealt_heads(config);
  TensorRules tensors;
  tensors.rules =
      mixer_rules(config, model + ".layers",
                  mixer_tensors(first_of(config, "attention", "heads"), key_heads, fused,
                                dealt ? transforms::deal_columns(key_heads, each) : Transform()));
  const std::vector<TensorRule> rest = {
      {{"embeddings.weight"}, {model + ".embed_tokens.weight"}, {}},
      {{layer + "mixer_norm.*"}, {theirs + "input_layernorm.*"}, less_one},
      {{layer + "ffn_norm.*"}, {theirs + "post_attention_layernorm.*"}, less_one},
      {{layer + "ffn.*"}, {theirs + "mlp.*"}, {}},
      {{"norm.*"}, {model + ".norm.*"}, less_one},
      {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  tensors.rules.insert(tensors.rules.end(), rest.begin(), rest.end());
  tensors.passed_over = tied_head(config, "lm_head.weight");
  return tensors;
}

TensorRules mixture_tensors(const ModelConfig& config, const std::string& model, bool fused,
                            bool stacked) {
  TensorRules tensors = layer_tensors(config, model, fused);
  if (!has_experts(config)) return tensors;
  const std::string theirs = model + ".layers.*.mlp.";
  std::vector<TensorRule> written = single_experts(theirs);
  tensors.layouts =
      stacked_experts(config, theirs + "experts.gate_up_proj", theirs + "experts.down_proj");
  if (stacked) std::swap(written, tensors.layouts);
  return with_rules(std::move(tensors), written);
}

}  // namespace

TensorRules qwen_hybrid_tensors(const ModelConfig& config, const std::string& model, bool fused,
                                bool stacked) {
  const auto family = [&](const ModelConfig& some) {
    return mixture_tensors(some, model, fused, stacked);
  };
  const auto names = [](int64_t head) {
    return PredictorNames{fmt::format("mtp.layers.{}", head), "mtp.pre_fc_norm_embedding",
                          "mtp.pre_fc_norm_hidden", "mtp.fc", "mtp.norm"};
  };
  TensorRules tensors = with_predictors(family(config), config, family, model + ".layers", names,
                                        transforms::plus(1));
  tensors.passed_over.emplace_back("model.visual.*");  // the tower for images
  if (config.mtp.heads == 0) tensors.passed_over.emplace_back("mtp.*");
  return tensors;
}

}  // namespace pronghorn
