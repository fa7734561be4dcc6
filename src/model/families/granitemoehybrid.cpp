// The Granite 4 family: Mamba-2, attention mostly without positions, Granite's factors (arXiv
// 2408.13359). Experts share a feed-forward, which is all there is in sizes without experts.
#include <utility>

#include "base/error.h"
#include "model/families.h"
#include "model/families/gguf_experts.h"
#include "model/families/gguf_hybrid.h"
#include "model/families/granite.h"
#include "model/families/hybrid.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

constexpr const char* kCount = "num_local_experts";

// intermediate_size is that of experts.
Decoder read_feed_forwards(ConfigReader& reader, DecoderDefaults defaults) {
  const int64_t shared = reader.integer("shared_intermediate_size", 1024, 1);
  const bool experts = reader.integer(kCount, 8, 0) > 0;
  defaults.size = experts ? 11008 : shared;
  Decoder decoder = read_decoder(reader, defaults);
  if (experts) {
    read_experts(reader, decoder, {kCount, 8, 2}, {{"shared_size", shared}});
  } else {
    decoder.size = shared;
    reader.ignore("num_experts_per_tok");
  }
  return decoder;
}

ModelConfig read(ConfigReader reader) {
  const bool turned = reader.string("position_embedding_type", "nope") == "rope";
  DecoderDefaults defaults;
  defaults.rope.by_layer = !turned;
  if (!turned) {
    for (const char* key : {"rope_parameters", "rope_scaling", "rope_theta"}) reader.ignore(key);
  }
  Decoder decoder = read_feed_forwards(reader, defaults);
  read_attention_bias(reader, decoder);
  read_granite_factors(reader, decoder);
  const nlohmann::json mamba2 =
      read_mamba2_mixer(reader, decoder.settings.at("hidden_size").get<int64_t>());
  std::vector<bool> attention =
      read_attention_layers(reader, "layer_types", decoder.layers, {"linear_attention", "mamba"},
                            [](int64_t) { return false; });
  return HybridDecoder{std::move(decoder), mamba2, std::move(attention)}.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const auto layers = hybrid_layers(config, "mamba2");
  if (layers.empty()) return {};
  const auto attention = layers_with(layers, "attention"),
             recurrent = layers_with(layers, "mamba2");
  nlohmann::json json =
      write_decoder(config, attention, "granitemoehybrid", "GraniteMoeHybridForCausalLM");
  const nlohmann::json& mixer = attention.front()->mixers.front();
  if (!heads_share_width(config, mixer)) return {};
  json["position_embedding_type"] = mixer.at("rope").is_null() ? "nope" : "rope";
  json["shared_intermediate_size"] = json.at("intermediate_size");
  json[kCount] = json["num_experts_per_tok"] = 0;
  if (has_experts(config)) {
    json.update(write_experts(config, kCount));
    json["shared_intermediate_size"] = experts_of(config).at("shared_size");
  }
  json["attention_bias"] = mixer.at("bias");
  json.update(write_granite_factors(config, *attention.front()));
  if (!recurrent.empty()) {
    json.update(write_mamba2_mixer(config, recurrent.front()->mixers.front()));
  }
  json["layer_types"] = write_layer_kinds(layers, "linear_attention");
  json.erase("head_dim");
  return json;
}

// The feed-forward of every token, `ours`.
std::vector<TensorRule> shared_rules(const std::string& ours) {
  const std::string theirs = "model.layers.*.shared_mlp.";
  return {{{ours + "gate_proj.weight", ours + "up_proj.weight"},
           {theirs + "input_linear.weight"},
           transforms::split()},
          {{ours + "down_proj.*"}, {theirs + "output_linear.*"}, {}}};
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
      {{"norm.*"}, {"model.norm.*"}, {}},
      {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  tensors.rules.insert(tensors.rules.end(), rest.begin(), rest.end());
  tensors.passed_over = tied_head(config, "lm_head.weight");
  if (!has_experts(config)) return with_rules(std::move(tensors), shared_rules(layer + "ffn."));
  tensors = with_rules(std::move(tensors), shared_rules(layer + "ffn.shared_expert."));
  return with_rules(std::move(tensors), granite_expert_rules(config));
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_attention(file, config);
  read_gguf_granite_scale(config);
  read_gguf_layer_types(file, "linear_attention", config);
  read_gguf_mamba2(file, config);
  if (!config.contains(kCount)) config[kCount] = 0;
  if (config[kCount] == 0) config["shared_intermediate_size"] = config.at("intermediate_size");
  config["position_embedding_type"] =
      file.metadata.boolean(file.key(kGgufTurned), true) ? "rope" : "nope";
  if (config["position_embedding_type"] == "nope") config.erase("partial_rotary_factor");
  config["attention_bias"] = gguf_has_in_a_layer(file, "attn_q.bias");
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  require(!mixers_of(config, "mamba2").empty(), file.metadata.where(),
          "files of the architecture granitehybrid have layers of Mamba-2");
  write_gguf_mamba2_hybrid(config, json, file);
  file.metadata.set(file.key(kGgufTurned),
                    GgufValue::boolean(json.at("position_embedding_type") == "rope"));
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return with_gguf_experts(
      gguf_hybrid_tensors(config, {.rope_pairs = true, .biases = true, .rope_tables = true},
                          {{"mamba2", "", gguf_mamba2_rules(config)}}),
      config);
}

std::vector<GgufKey> gguf_keys() {
  std::vector<GgufKey> keys = gguf_granite_keys();
  const std::vector<GgufKey> mamba2 = gguf_mamba2_keys();
  keys.insert(keys.end(), mamba2.begin(), mamba2.end());
  const std::vector<GgufKey> experts = gguf_expert_keys(kCount, false);
  keys.insert(keys.end(), experts.begin(), experts.end());
  keys.push_back(
      {"expert_shared_feed_forward_length", "shared_intermediate_size", GgufKind::u32, false});
  return gguf_hybrid_keys(keys);
}

}  // namespace

Family granitemoehybrid_family() {
  static const GgufFormat gguf = {"granitehybrid",
                                  gguf_keys(),
                                  gguf_hybrid_other_keys({"ssm.inner_size"}),
                                  read_gguf,
                                  write_gguf,
                                  gguf_tensors,
                                  {},
                                  [](const GgufModel& file) { return !gguf_is_bamba(file); }};
  return {"granitemoehybrid", read, write, tensors, &gguf};
}

}  // namespace pronghorn
