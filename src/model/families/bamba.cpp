// The Bamba family: Mamba-2 and a few layers of attention with half of each head turned.
#include <vector>

#include "model/families.h"
#include "model/families/gguf_hybrid.h"
#include "model/families/hybrid.h"

namespace pronghorn {
namespace {

constexpr double kTurned = 0.5;  // of each head, whatever the configuration says

ModelConfig read(ConfigReader reader) {
  DecoderDefaults defaults{.kv_heads = 8, .epsilon = 1e-5};
  defaults.rope.partial = kTurned;
  defaults.rope.has_partial = true;
  Decoder decoder = read_decoder(reader, defaults);
  decoder.mixer["rope"]["rotary_dim"] =
      static_cast<int64_t>(kTurned * static_cast<double>(head_dim(decoder)));
  read_attention_bias(reader, decoder);
  read_mlp_bias(reader, decoder);
  reader.ignore("attn_rotary_emb");
  const nlohmann::json mamba2 =
      read_mamba2_mixer(reader, decoder.settings.at("hidden_size").get<int64_t>());
  const nlohmann::json& indices = reader.raw("attn_layer_indices");
  return decoder.finish(reader, [&](int64_t layer, nlohmann::json& mixer) {
    const bool attention = lists(indices, layer);
    if (!attention) mixer = mamba2;
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const auto layers = hybrid_layers(config, "mamba2");
  const auto recurrent = layers_with(layers, "mamba2");
  if (recurrent.empty()) return {};
  const auto attention = layers_with(layers, "attention");
  nlohmann::json json = write_decoder(config, attention, "bamba", "BambaForCausalLM");
  const nlohmann::json& mixer = attention.front()->mixers.front();
  if (!heads_share_width(config, mixer)) return {};
  json["attention_bias"] = mixer.at("bias");
  json["mlp_bias"] = has_bias(layers.front()->feed_forward);
  json["attn_layer_indices"] = nlohmann::json::array();
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i]->mixers.front().at("type") == "attention")
      json["attn_layer_indices"].push_back(i);
  }
  json.update(write_mamba2_mixer(config, recurrent.front()->mixers.front()));
  for (const char* key : {"head_dim", "partial_rotary_factor"}) json.erase(key);
  return json;
}

TensorRules tensors(const ModelConfig& config) { return mamba_hybrid_tensors(config, "mamba2"); }

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_attention(file, config);
  read_gguf_mamba2(file, config);
  read_gguf_biases(file, config);
  const std::vector<bool> attention = read_gguf_attention_layers(file, config);
  config["attn_layer_indices"] = nlohmann::json::array();
  for (size_t i = 0; i < attention.size(); ++i) {
    if (attention[i]) config["attn_layer_indices"].push_back(i);
  }
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_gguf_mamba2_hybrid(config, json, file);
  file.metadata.set(file.key(kGgufTurned), GgufValue::boolean(true));
}

// As llama.cpp's converter does, the pairs of whole heads are moved, although half is turned.
TensorRules gguf_tensors(const ModelConfig& config) {
  return gguf_hybrid_tensors(config, {.rope_pairs = true, .biases = true},
                             {{"mamba2", "", gguf_mamba2_rules(config)}});
}

}  // namespace

Family bamba_family() {
  static const GgufFormat gguf = {"granitehybrid",
                                  gguf_hybrid_keys(gguf_mamba2_keys()),
                                  gguf_hybrid_other_keys({"ssm.inner_size"}),
                                  read_gguf,
                                  write_gguf,
                                  gguf_tensors,
                                  {},
                                  gguf_is_bamba};
  return {"bamba", read, write, tensors, &gguf};
}

}  // namespace pronghorn
