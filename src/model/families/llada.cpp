// LLaDA (arXiv 2502.09992): a masked diffusion model of Llama's layers, which see both ways, under
// the names of OLMo's first code.
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"
#include "model/families/gguf_heads.h"
#include "model/families/llada_moe.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

constexpr int64_t kMaskToken = 126336;  // of the published models

// What the published code can be told and no published model is.
void refuse_variants(ConfigReader& reader) {
  for (const char* key : {"alibi", "attention_layer_norm", "bias_for_layer_norm", "include_bias",
                          "include_qkv_bias", "input_emb_norm", "scale_logits"}) {
    require(!reader.boolean(key, false), reader.path(key), "true is not supported");
  }
  for (const char* key : {"rope", "layer_norm_with_affine"}) {
    require(reader.boolean(key, true), reader.path(key), "false is not supported");
  }
  reader.one_of("block_type", {"llama"}, "llama");
  reader.one_of("layer_norm_type", {"rms"}, "rms");
  for (const char* key : {"alibi_bias_max", "attention_layer_norm_with_affine", "block_group_size",
                          "init_cutoff_factor", "init_device", "init_fn", "mlp_ratio",
                          "multi_query_attention", "precision", "rope_full_precision"}) {
    reader.ignore(key);
  }
}

ModelConfig read(ConfigReader reader) {
  if (reader.has("num_experts")) return read_llada_moe(std::move(reader));
  Decoder decoder;
  decoder.layers = reader.integer("n_layers", {}, 1, 1 << 14);
  const int64_t heads = reader.integer("n_heads", {}, 1);
  decoder.mixer = {{"type", "attention"},
                   {"heads", heads},
                   {"kv_heads", reader.integer("n_kv_heads", heads, 1)},
                   {"rope", {{"theta", reader.number("rope_theta", 10000.0, 1.0)}}}};
  decoder.size = reader.integer("mlp_hidden_size", {}, 1);
  decoder.activation = read_activation(reader, "activation_type", "silu");
  const int64_t vocab_size = reader.integer("vocab_size", {}, 1);
  decoder.settings = {
      // The table may be longer than the vocabulary.
      {"vocab_size", reader.integer("embedding_size", vocab_size, 1)},
      {"hidden_size", reader.integer("d_model", {}, 1, 1 << 24)},
      {"tie_embeddings", reader.boolean("weight_tying", false)},
      {"norm", {{"type", "rms_norm"}, {"epsilon", reader.number("rms_norm_eps", 1e-5, 0)}}},
      {"diffusion", {{"mask_token", reader.integer("mask_token_id", {}, 0)}}}};
  refuse_variants(reader);
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  if (has_experts(config)) return write_llada_moe(config, "llada");
  const std::vector<const BlockConfig*> layers = decoder_layers(config);
  if (layers.empty() || !config.diffusion) return {};
  const nlohmann::json& mixer = layers.front()->mixers.front();
  if (mixer.at("rope").is_null()) return {};
  nlohmann::json json = {
      {"model_type", "llada"},
      {"architectures", {"LLaDAModelLM"}},
      {"block_type", "llama"},
      {"layer_norm_type", "rms"},
      {"vocab_size", config.vocab_size},
      {"embedding_size", config.vocab_size},
      {"d_model", config.hidden_size},
      {"n_layers", config.block_count()},
      {"n_heads", mixer.at("heads")},
      {"n_kv_heads", mixer.at("kv_heads")},
      {"mlp_hidden_size", layers.front()->feed_forward.at("size")},
      {"activation_type", write_activation(activation_of(layers.front()->feed_forward))},
      {"rms_norm_eps", config.norm_epsilon},
      {"rope", true},
      {"rope_theta", mixer.at("rope").at("theta")},
      {"weight_tying", config.tie_embeddings},
      {"mask_token_id", config.diffusion->mask_token},
      {"torch_dtype", "float32"}};
  if (config.context.tokens > 0) json["max_sequence_length"] = config.context.tokens;
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  if (has_experts(config)) return decoder_tensors(config);
  const std::string layer = "layers.*.", theirs = "model.transformer.blocks.*.";
  TensorRules tensors;
  tensors.rules = {{{"embeddings.weight"}, {"model.transformer.wte.weight"}, {}},
                   {{layer + "mixer_norm.*"}, {theirs + "attn_norm.*"}, {}},
                   {{layer + "mixer.o_proj.*"}, {theirs + "attn_out.*"}, {}},
                   {{layer + "mixer.*"}, {theirs + "*"}, {}},
                   {{layer + "ffn_norm.*"}, {theirs + "ff_norm.*"}, {}},
                   {{layer + "ffn.gate_proj.*"}, {theirs + "ff_proj.*"}, {}},
                   {{layer + "ffn.up_proj.*"}, {theirs + "up_proj.*"}, {}},
                   {{layer + "ffn.down_proj.*"}, {theirs + "ff_out.*"}, {}},
                   {{"norm.*"}, {"model.transformer.ln_f.*"}, {}},
                   {{"lm_head.weight"}, {"model.transformer.ff_out.weight"}, {}}};
  tensors.passed_over = tied_head(config, "model.transformer.ff_out.weight");
  return tensors;
}

// As this family calls what others have.
std::vector<GgufKey> gguf_keys() {
  return {{"block_count", "n_layers"},
          {"context_length", "max_sequence_length", GgufKind::u32, false},
          {"embedding_length", "d_model"},
          {"feed_forward_length", "mlp_hidden_size"},
          {"attention.head_count", "n_heads"},
          {"attention.head_count_kv", "n_kv_heads", GgufKind::u32, false},
          {"attention.layer_norm_rms_epsilon", "rms_norm_eps", GgufKind::f32},
          {"rope.freq_base", "rope_theta", GgufKind::f32, false}};
}

std::vector<std::string_view> gguf_other_keys() {
  std::vector<std::string_view> keys = gguf_decoder_other_keys();
  keys.push_back("attention.key_length");
  return keys;
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  const GgufMetadata& metadata = file.metadata;
  const auto heads = std::max<int64_t>(1, config.at("n_heads").get<int64_t>());
  const int64_t head_dim = config.at("d_model").get<int64_t>() / heads;
  for (const char* name :
       {"attention.key_length", "attention.value_length", "rope.dimension_count"}) {
    const std::string key = file.key(name);
    require(metadata.integer(key, head_dim) == head_dim, metadata.path(key),
            "is supported for heads that share the width of the model only: {}", head_dim);
  }
  read_gguf_rope(file, config);
  const std::string scaling = file.key("rope.scaling.type");
  require(!config.contains("rope_scaling"), metadata.path(scaling),
          "scaled rotary positions are not supported for this architecture");
  config["weight_tying"] = config.at("tie_word_embeddings");
  config.erase("tie_word_embeddings");
  read_gguf_diffusion(file, kMaskToken, false, config);
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_gguf_attention(config, json, file);
  write_gguf_diffusion(config, file);
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return gguf_decoder_tensors(config, {.rope_pairs = true});
}

}  // namespace

Family llada_family() {
  static const GgufFormat gguf = {
      "llada", gguf_keys(), gguf_other_keys(), read_gguf, write_gguf, gguf_tensors,
      {},      nullptr,     nullptr,           {},        true};
  return {"llada", read, write, tensors, &gguf};
}

}  // namespace pronghorn
