// The Granite 4 family: Mamba-2, attention mostly without positions, Granite's factors (arXiv
// 2408.13359). Sizes without routed experts: a feed-forward is what the experts would share.
#include "base/error.h"
#include "model/families.h"
#include "model/families/hybrid.h"

namespace pronghorn {
namespace {

constexpr double kLeast = 1e-9;  // of a factor that is divided by

ModelConfig read(ConfigReader reader) {
  const bool turned = reader.string("position_embedding_type", "nope") == "rope";
  DecoderDefaults defaults;
  defaults.rope.by_layer = !turned;
  if (!turned) {
    for (const char* key : {"rope_parameters", "rope_scaling", "rope_theta"}) reader.ignore(key);
  }
  // intermediate_size is that of routed experts.
  defaults.size = reader.integer("shared_intermediate_size", 1024, 1);
  Decoder decoder = read_decoder(reader, defaults);
  decoder.size = defaults.size;
  require(reader.integer("num_local_experts", 8, 0) == 0, reader.path("num_local_experts"),
          "routed experts are not supported in this family");
  reader.ignore("num_experts_per_tok");
  read_attention_bias(reader, decoder);
  decoder.mixer["scale"] = reader.number("attention_multiplier", 1.0, kLeast);
  decoder.block = {{"residual_multiplier", reader.number("residual_multiplier", 1.0)}};
  decoder.settings["embedding_scale"] = reader.number("embedding_multiplier", 1.0);
  decoder.settings["logit_scale"] = 1 / reader.number("logits_scaling", 1.0, kLeast);
  const nlohmann::json mamba2 =
      read_mamba2_mixer(reader, decoder.settings.at("hidden_size").get<int64_t>());
  const std::vector<bool> attention =
      read_attention_layers(reader, "layer_types", decoder.layers, {"linear_attention", "mamba"},
                            [](int64_t) { return false; });
  return decoder.finish(reader, [&](int64_t layer, nlohmann::json& mixer) {
    if (!attention[static_cast<size_t>(layer)]) mixer = mamba2;
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const auto layers = hybrid_layers(config, "mamba2");
  if (layers.empty()) return {};
  const auto attention = layers_with(layers, "attention"),
             recurrent = layers_with(layers, "mamba2");
  nlohmann::json json =
      write_decoder(config, attention, "granitemoehybrid", "GraniteMoeHybridForCausalLM");
  const nlohmann::json& mixer = attention.front()->mixers.front();
  if (mixer.at("head_dim") != config.hidden_size / mixer.at("heads").get<int64_t>()) return {};
  json["position_embedding_type"] = mixer.at("rope").is_null() ? "nope" : "rope";
  json["shared_intermediate_size"] = json.at("intermediate_size");
  json["num_local_experts"] = json["num_experts_per_tok"] = 0;
  json["attention_bias"] = mixer.at("bias");
  json["attention_multiplier"] = mixer.at("scale");
  json["residual_multiplier"] = layers.front()->residual_multiplier;
  json["embedding_multiplier"] = config.embedding_scale;
  json["logits_scaling"] = divisor_of(config.logit_scale);
  if (!recurrent.empty()) {
    json.update(write_mamba2_mixer(config, recurrent.front()->mixers.front()));
  }
  json["layer_types"] = write_layer_kinds(layers, "linear_attention");
  json.erase("head_dim");
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "model.layers.*.";
  TensorRules tensors;
  tensors.rules =
      mixer_rules(config, "model.layers",
                  {{"attention", "self_attn", {}}, {"mamba2", "mamba", {convolution_rule()}}});
  const std::vector<TensorRule> rest = {
      {{"embeddings.weight"}, {"model.embed_tokens.weight"}, {}},
      {{layer + "mixer_norm.*"}, {theirs + "input_layernorm.*"}, {}},
      {{layer + "ffn_norm.*"}, {theirs + "post_attention_layernorm.*"}, {}},
      {{layer + "ffn.gate_proj.weight", layer + "ffn.up_proj.weight"},
       {theirs + "shared_mlp.input_linear.weight"},
       transforms::split()},
      {{layer + "ffn.down_proj.*"}, {theirs + "shared_mlp.output_linear.*"}, {}},
      {{"norm.*"}, {"model.norm.*"}, {}},
      {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  tensors.rules.insert(tensors.rules.end(), rest.begin(), rest.end());
  tensors.passed_over = tied_head(config, "lm_head.weight");
  return tensors;
}

}  // namespace

Family granitemoehybrid_family() { return {"granitemoehybrid", read, write, tensors}; }

}  // namespace pronghorn
