// The OLMo Hybrid family: Gated DeltaNet under norms before its parts, attention under norms after
// them; write strengths of up to 2.
#include "model/families.h"
#include "model/families/hybrid.h"

namespace pronghorn {
namespace {

constexpr double kGatedNormEpsilon = 1e-5;  // the reference's, whatever rms_norm_eps is

nlohmann::json read_delta_net(ConfigReader& reader, const Decoder& decoder) {
  const int64_t heads = decoder.mixer.at("heads"), hidden = decoder.settings.at("hidden_size");
  const int64_t key_heads = reader.integer("linear_num_key_heads", heads, 1, 1 << 20);
  const int64_t head_dim = reader.integer("linear_key_head_dim", 3 * hidden / (4 * key_heads), 1);
  for (const char* key : {"linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max",
                          "linear_dt_init_floor"}) {
    reader.ignore(key);
  }
  return {{"type", "gated_deltanet"},
          {"heads", key_heads},
          {"value_heads", reader.integer("linear_num_value_heads", heads, 1)},
          {"head_dim", head_dim},
          {"value_head_dim", reader.integer("linear_value_head_dim", 2 * head_dim, 1)},
          {"conv_kernel", reader.integer("linear_conv_kernel_dim", 4, 1)},
          {"negative_eigenvalues", reader.boolean("linear_allow_neg_eigval", true)},
          {"norm_epsilon", kGatedNormEpsilon}};
}

// Without a base there are no positions.
bool has_rope(const ConfigReader& reader) {
  const nlohmann::json& rope = reader.peek("rope_parameters");
  return !(rope.is_object() && rope.contains("rope_theta") && rope.at("rope_theta").is_null());
}

ModelConfig read(ConfigReader reader) {
  DecoderDefaults defaults;
  defaults.rope.by_layer = !has_rope(reader);
  if (defaults.rope.by_layer) reader.ignore("rope_parameters");
  Decoder decoder = read_decoder(reader, defaults);
  read_attention_bias(reader, decoder);
  decoder.mixer["qk_norm"] = true;
  decoder.mixer["qk_norm_over"] = "projection";
  const nlohmann::json delta_net = read_delta_net(reader, decoder);
  const std::vector<bool> attention = read_attention_layers(
      reader, "layer_types", decoder.layers, {"linear_attention"}, [&](int64_t layer) {
        return layer % 4 == 3 || (decoder.layers < 4 && layer == decoder.layers - 1);
      });
  return decoder.finish_layers(reader, [&](int64_t layer, nlohmann::json& block) {
    if (attention[static_cast<size_t>(layer)]) {
      block["norms"] = "after";
    } else {
      block["mixer"] = delta_net;
    }
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const auto layers = hybrid_layers(config, "gated_deltanet");
  const auto recurrent = layers_with(layers, "gated_deltanet");
  if (recurrent.empty()) return {};
  const auto attention = layers_with(layers, "attention");
  nlohmann::json json = write_decoder(config, attention, "olmo_hybrid", "OlmoHybridForCausalLM");
  if (!json.contains("rope_theta")) {
    json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", nullptr}};
  }
  const nlohmann::json& mixer = recurrent.front()->mixers.front();
  json["attention_bias"] = attention.front()->mixers.front().at("bias");
  json.update(write_delta_net(mixer));
  json["linear_allow_neg_eigval"] = mixer.at("negative_eigenvalues");
  json["layer_types"] = write_layer_kinds(layers, "linear_attention");
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "model.layers.*.";
  TensorRules tensors;
  tensors.rules =
      mixer_rules(config, "model.layers",
                  {{"attention", "self_attn", {}},
                   {"gated_deltanet",
                    "linear_attn",
                    {convolution_rule("q_conv1d.weight"), convolution_rule("k_conv1d.weight"),
                     convolution_rule("v_conv1d.weight")}}});
  const std::vector<TensorRule> rest = {
      {{"embeddings.weight"}, {"model.embed_tokens.weight"}, {}},
      {{layer + "mixer_norm.*"}, {theirs + "attention_layer_norm.*"}, {}},
      {{layer + "ffn_norm.*"}, {theirs + "feedforward_layer_norm.*"}, {}},
      {{layer + "mixer_post_norm.*"}, {theirs + "feedforward_layer_norm.*"}, {}},
      {{layer + "ffn_post_norm.*"}, {theirs + "post_feedforward_layernorm.*"}, {}},
      {{layer + "ffn.*"}, {theirs + "mlp.*"}, {}},
      {{"norm.*"}, {"model.norm.*"}, {}},
      {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  tensors.rules.insert(tensors.rules.end(), rest.begin(), rest.end());
  // What the reference calls them after it has read them, and may have written.
  tensors.aliases = {
      {theirs + "attention_layer_norm.weight", theirs + "input_layernorm.weight"},
      {theirs + "feedforward_layer_norm.weight", theirs + "post_attention_layernorm.weight"}};
  tensors.passed_over = tied_head(config, "lm_head.weight");
  return tensors;
}

}  // namespace

Family olmo_hybrid_family() { return {"olmo_hybrid", read, write, tensors}; }

}  // namespace pronghorn
