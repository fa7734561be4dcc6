// The GPT-2 family (Radford et al., 2019): LayerNorm, learned positions, GELU; matrices are
// published [in, out], and queries, keys and values in one.
#include <cmath>

#include "base/error.h"
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"
#include "model/families/published_keys.h"

namespace pronghorn {
namespace {

// The family's own name of a size, or the usual one, which the reference takes too.
int64_t read_size(ConfigReader& reader, const std::string& own, const std::string& usual,
                  std::optional<int64_t> fallback = {}) {
  const bool has_usual = reader.has(usual) && !reader.has(own);
  reader.ignore(own);
  reader.ignore(usual);
  return reader.integer(has_usual ? usual : own, fallback, 1);
}

ModelConfig read(ConfigReader reader) {
  const int64_t hidden_size = read_size(reader, "n_embd", "hidden_size");
  const int64_t heads = read_size(reader, "n_head", "num_attention_heads");
  const int64_t layers = read_size(reader, "n_layer", "num_hidden_layers");
  require(layers <= kMaxBlocks, reader.path("n_layer"), "{} layers", layers);
  require(!reader.boolean("add_cross_attention", false), reader.path("add_cross_attention"),
          "true is not supported");
  const bool scaled = reader.boolean("scale_attn_weights", true);
  const bool by_layer = reader.boolean("scale_attn_by_inverse_layer_idx", false);
  const double scale = scaled ? 1 / std::sqrt(static_cast<double>(hidden_size / heads)) : 1;
  const nlohmann::json ffn =
      plain_ffn(reader.integer("n_inner", 4 * hidden_size, 1),
                read_activation(reader, "activation_function", "gelu_new"), true);
  nlohmann::json settings = {
      {"vocab_size", reader.integer("vocab_size", {}, 1)},
      {"hidden_size", hidden_size},
      {"learned_positions", read_size(reader, "n_positions", "max_position_embeddings", 1024)},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", true)},
      {"norm",
       {{"type", "layer_norm"},
        {"bias", true},
        {"epsilon", reader.number("layer_norm_epsilon", 1e-5, 0)}}}};
  // The published checkpoint has them; they concern other heads.
  for (const char* key : {"summary_type", "summary_use_proj", "summary_activation",
                          "summary_proj_to_labels", "summary_first_dropout"}) {
    reader.ignore(key);
  }
  read_trained_context(reader, settings);
  finish_published(reader);
  std::vector<nlohmann::json> blocks;
  for (int64_t i = 0; i < layers; ++i) {
    nlohmann::json mixer = {
        {"type", "attention"}, {"heads", heads}, {"bias", true}, {"output_bias", true}};
    if (!scaled || by_layer) mixer["scale"] = by_layer ? scale / static_cast<double>(i + 1) : scale;
    blocks.push_back({{"mixer", mixer}, {"ffn", ffn}});
  }
  return layered_config(reader, settings, blocks);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = decoder_layers(config);
  if (layers.empty()) return {};
  const nlohmann::json& mixer = layers.front()->mixers.front();
  const nlohmann::json& ffn = layers.front()->feed_forward;
  const std::string activation = activation_of(ffn);
  const bool by_layer =
      layers.size() > 1 && layers[1]->mixers.front().at("scale") != mixer.at("scale");
  return {{{"model_type", "gpt2"},
           {"architectures", {"GPT2LMHeadModel"}},
           {"vocab_size", config.vocab_size},
           {"n_embd", config.hidden_size},
           {"n_head", mixer.at("heads")},
           {"n_layer", config.block_count()},
           {"n_positions", config.learned_positions},
           {"n_inner", ffn.at("size")},
           {"activation_function",
            activation == "gelu_tanh" ? "gelu_new" : write_activation(activation)},
           {"scale_attn_weights", mixer.at("scale") != 1},
           {"scale_attn_by_inverse_layer_idx", by_layer},
           {"layer_norm_epsilon", config.norm_epsilon},
           {"tie_word_embeddings", config.tie_embeddings},
           {"torch_dtype", "float32"}}};
}

TensorRules tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "transformer.h.*.";
  const auto qkv = [&](const std::string& kind) {
    return std::vector<std::string>{layer + "mixer.q_proj." + kind, layer + "mixer.k_proj." + kind,
                                    layer + "mixer.v_proj." + kind};
  };
  const Transform turned = transforms::transpose();
  TensorRules tensors;
  tensors.rules = {
      {{"embeddings.weight"}, {"transformer.wte.weight"}, {}},
      {{"positions.weight"}, {"transformer.wpe.weight"}, {}},
      {{layer + "mixer_norm.*"}, {theirs + "ln_1.*"}, {}},
      {qkv("weight"), {theirs + "attn.c_attn.weight"}, turned.then(transforms::split())},
      {qkv("bias"), {theirs + "attn.c_attn.bias"}, transforms::split()},
      {{layer + "mixer.o_proj.weight"}, {theirs + "attn.c_proj.weight"}, turned},
      {{layer + "mixer.o_proj.bias"}, {theirs + "attn.c_proj.bias"}, {}},
      {{layer + "ffn_norm.*"}, {theirs + "ln_2.*"}, {}},
      {{layer + "ffn.up_proj.weight"}, {theirs + "mlp.c_fc.weight"}, turned},
      {{layer + "ffn.up_proj.bias"}, {theirs + "mlp.c_fc.bias"}, {}},
      {{layer + "ffn.down_proj.weight"}, {theirs + "mlp.c_proj.weight"}, turned},
      {{layer + "ffn.down_proj.bias"}, {theirs + "mlp.c_proj.bias"}, {}},
      {{"norm.*"}, {"transformer.ln_f.*"}, {}},
      {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  // The first checkpoints were published without the prefix.
  tensors.aliases = {{"transformer.*", "*"}};
  tensors.passed_over = tied_head(config, "lm_head.weight");
  return tensors;
}

}  // namespace

Family gpt2_family() {
  static const GgufFormat gguf = {
      "gpt2",
      {{"block_count", "n_layer"},
       {"context_length", "n_positions"},
       {"embedding_length", "n_embd"},
       {"feed_forward_length", "n_inner"},
       {"attention.head_count", "n_head"},
       {"attention.layer_norm_epsilon", "layer_norm_epsilon", GgufKind::f32}},
      {"vocab_size"},
      nullptr,
      nullptr,
      gguf_plain_tensors};
  return {"gpt2", read, write, tensors, &gguf};
}

}  // namespace pronghorn
