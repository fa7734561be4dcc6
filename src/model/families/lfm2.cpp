// The LFM2 family (arXiv 2511.23404): short convolutions between gates, attention in some layers,
// with a norm on each head's query and key.
#include "model/families/lfm2.h"

#include "model/families.h"
#include "model/families/gguf_hybrid.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

// block_auto_adjust_ff_dim: two thirds of the size that is said, times a factor, rounded up.
int64_t read_size(ConfigReader& reader) {
  int64_t size = reader.integer("intermediate_size", 12288, 1, 1 << 24);
  size = reader.integer("block_ff_dim", size, 1, 1 << 24);  // an older name, which counts for more
  const bool adjust = reader.boolean("block_auto_adjust_ff_dim", true);
  const double factor = reader.number("block_ffn_dim_multiplier", 1.0, 1e-3, 1e3);
  const int64_t multiple = reader.integer("block_multiple_of", 256, 1, 1 << 20);
  if (!adjust) return size;
  const auto scaled = static_cast<int64_t>(factor * static_cast<double>(2 * size / 3));
  return (scaled + multiple - 1) / multiple * multiple;
}

}  // namespace

HybridDecoder read_lfm2(ConfigReader& reader, int64_t size) {
  DecoderDefaults defaults{.kv_heads = 8, .size = size, .tied = true};
  defaults.rope.theta = 1e6;
  defaults.epsilon = reader.number("norm_eps", 1e-5, 0);
  HybridDecoder model;
  Decoder& decoder = model.decoder;
  decoder = read_decoder(reader, defaults);
  decoder.size = size;
  decoder.mixer["qk_norm"] = true;
  // An older name, which counts for more.
  if (reader.has("tie_embedding")) {
    decoder.settings["tie_embeddings"] = reader.boolean("tie_embedding");
  }
  model.other = {{"type", "short_conv"},
                 {"conv_kernel", reader.integer("conv_L_cache", 3, 1)},
                 {"bias", reader.boolean("conv_bias", false)}};
  for (const char* key : {"block_dim", "block_norm_eps", "block_use_swiglu", "block_mlp_init_scale",
                          "block_out_init_scale", "block_use_xavier_init", "conv_dim",
                          "conv_dim_out", "conv_use_xavier_init", "num_heads", "use_pos_enc"}) {
    reader.ignore(key);
  }
  const nlohmann::json& indices = reader.raw("full_attn_idxs");
  model.attention = read_attention_layers(
      reader, "layer_types", decoder.layers, {"conv"},
      [&](int64_t layer) { return !indices.is_array() || lists(indices, layer); });
  return model;
}

std::optional<nlohmann::json> write_lfm2(const ModelConfig& config, const std::string& model_type,
                                         const std::string& architecture) {
  const auto layers = hybrid_layers(config, "short_conv");
  const auto convolutions = layers_with(layers, "short_conv");
  if (convolutions.empty()) return {};
  nlohmann::json json =
      write_decoder(config, layers_with(layers, "attention"), model_type, architecture);
  const nlohmann::json& convolution = convolutions.front()->mixers.front();
  json["conv_L_cache"] = convolution.at("conv_kernel");
  json["conv_bias"] = convolution.at("bias");
  json["layer_types"] = write_layer_kinds(layers, "conv");
  json["norm_eps"] = config.norm_epsilon;
  for (const char* key : {"rms_norm_eps", "hidden_act", "head_dim"}) json.erase(key);
  return json;
}

TensorRules lfm2_tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "model.layers.*.";
  TensorRules tensors;
  tensors.rules = mixer_rules(config, "model.layers",
                              {{"attention",
                                "self_attn",
                                {{{"o_proj.weight"}, {"out_proj.weight"}, {}},
                                 {{"q_norm.weight"}, {"q_layernorm.weight"}, {}},
                                 {{"k_norm.weight"}, {"k_layernorm.weight"}, {}}}},
                               {"short_conv", "conv", {convolution_rule("conv.weight")}}});
  const std::vector<TensorRule> rest = {
      {{"embeddings.weight"}, {"model.embed_tokens.weight"}, {}},
      {{layer + "mixer_norm.*"}, {theirs + "operator_norm.*"}, {}},
      {{layer + "ffn_norm.*"}, {theirs + "ffn_norm.*"}, {}},
      {{layer + "ffn.gate_proj.*"}, {theirs + "feed_forward.w1.*"}, {}},
      {{layer + "ffn.up_proj.*"}, {theirs + "feed_forward.w3.*"}, {}},
      {{layer + "ffn.down_proj.*"}, {theirs + "feed_forward.w2.*"}, {}},
      {{"norm.*"}, {"model.embedding_norm.*"}, {}},
      {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  tensors.rules.insert(tensors.rules.end(), rest.begin(), rest.end());
  tensors.passed_over = tied_head(config, "lm_head.weight");
  return tensors;
}

namespace {

ModelConfig read(ConfigReader reader) {
  const int64_t size = read_size(reader);
  return read_lfm2(reader, size).finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  std::optional<nlohmann::json> json = write_lfm2(config, "lfm2", "Lfm2ForCausalLM");
  if (json) (*json)["block_auto_adjust_ff_dim"] = false;
  return json;
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_lfm2_gguf(file, config);
  config["block_auto_adjust_ff_dim"] = false;
}

}  // namespace

std::vector<GgufKey> lfm2_gguf_keys(const std::vector<GgufKey>& more) {
  std::vector<GgufKey> keys = {{"attention.layer_norm_rms_epsilon", "norm_eps", GgufKind::f32},
                               {"shortconv.l_cache", "conv_L_cache"}};
  keys.insert(keys.end(), more.begin(), more.end());
  return gguf_hybrid_keys(keys);
}

void read_lfm2_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_attention(file, config);
  read_gguf_layer_types(file, "conv", config);
}

void write_lfm2_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_gguf_attention(config, json, file);
  write_gguf_attention_layers(config, file);
}

TensorRules lfm2_gguf_tensors(const ModelConfig& config) {
  TensorRules tensors =
      gguf_hybrid_tensors(config, {},
                          {{"short_conv",
                            "",
                            {{{"conv.weight"}, {"shortconv.conv.weight"}, {}},
                             {{"*_proj.weight"}, {"shortconv.*_proj.weight"}, {}}}}});
  return with_rules(std::move(tensors), {{{"norm.weight"}, {"token_embd_norm.weight"}, {}}});
}

Family lfm2_family() {
  static const GgufFormat gguf = {"lfm2",    lfm2_gguf_keys({}), gguf_decoder_other_keys(),
                                  read_gguf, write_lfm2_gguf,    lfm2_gguf_tensors};
  return {"lfm2", read, write, lfm2_tensors, &gguf};
}

}  // namespace pronghorn
