// The GPT-NeoX family (arXiv 2204.06745, 2304.01373): LayerNorm, a feed-forward beside attention,
// a quarter of each head turned; heads are published with their query, key and value together.
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  DecoderDefaults defaults{.activation = "gelu"};
  defaults.rope.theta = reader.number("rotary_emb_base", defaults.rope.theta, 1.0);
  defaults.rope.partial = reader.number("rotary_pct", 0.25, 0, 1);
  defaults.rope.has_partial = true;
  Decoder decoder = read_decoder(reader, defaults);
  read_attention_bias(reader, decoder, true);
  decoder.settings["norm"] = {{"type", "layer_norm"},
                              {"bias", true},
                              {"epsilon", reader.number("layer_norm_eps", 1e-5, 0)}};
  decoder.gated = false;
  decoder.mlp_bias = true;
  if (reader.boolean("use_parallel_residual", true)) decoder.block = {{"residual", "parallel"}};
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = decoder_layers(config);
  if (layers.empty()) return {};
  nlohmann::json json = write_decoder(config, "gpt_neox", "GPTNeoXForCausalLM");
  const BlockConfig& block = *layers.front();
  const nlohmann::json& mixer = block.mixers.front();
  if (mixer.at("rope").is_null()) return {};
  json["rotary_emb_base"] = mixer.at("rope").at("theta");
  json["rotary_pct"] = json.value("partial_rotary_factor", 1.0);
  json["layer_norm_eps"] = config.norm_epsilon;
  json["attention_bias"] = mixer.at("bias");
  json["use_parallel_residual"] = block.residual == BlockConfig::Residual::parallel;
  for (const char* key :
       {"rms_norm_eps", "rope_theta", "partial_rotary_factor", "num_key_value_heads", "head_dim"}) {
    json.erase(key);
  }
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "gpt_neox.layers.*.";
  const int64_t heads = decoder_layers(config).front()->mixers.front().at("heads");
  const auto qkv = [&](const std::string& kind) {
    return TensorRule{{layer + "mixer.q_proj." + kind, layer + "mixer.k_proj." + kind,
                       layer + "mixer.v_proj." + kind},
                      {theirs + "attention.query_key_value." + kind},
                      transforms::split(0, heads)};
  };
  TensorRules tensors;
  tensors.rules = {{{"embeddings.weight"}, {"gpt_neox.embed_in.weight"}, {}},
                   {{layer + "mixer_norm.*"}, {theirs + "input_layernorm.*"}, {}},
                   qkv("weight"),
                   qkv("bias"),
                   {{layer + "mixer.o_proj.*"}, {theirs + "attention.dense.*"}, {}},
                   {{layer + "ffn_norm.*"}, {theirs + "post_attention_layernorm.*"}, {}},
                   {{layer + "ffn.up_proj.*"}, {theirs + "mlp.dense_h_to_4h.*"}, {}},
                   {{layer + "ffn.down_proj.*"}, {theirs + "mlp.dense_4h_to_h.*"}, {}},
                   {{"norm.*"}, {"gpt_neox.final_layer_norm.*"}, {}},
                   {{"lm_head.weight"}, {"embed_out.weight"}, {}}};
  tensors.aliases = {{"embed_out.weight", "lm_head.weight"}};
  tensors.passed_over = tied_head(config, "embed_out.weight");
  return tensors;
}

}  // namespace

Family gpt_neox_family() {
  static const GgufFormat gguf = {
      "gptneox",
      {{"block_count", "num_hidden_layers"},
       {"context_length", "max_position_embeddings", GgufKind::u32, false},
       {"embedding_length", "hidden_size"},
       {"feed_forward_length", "intermediate_size"},
       {"attention.head_count", "num_attention_heads"},
       {"attention.layer_norm_epsilon", "layer_norm_eps", GgufKind::f32},
       {"attention.key_length", "head_dim", GgufKind::u32, false},
       {"rope.freq_base", "rotary_emb_base", GgufKind::f32, false},
       {"use_parallel_residual", "use_parallel_residual", GgufKind::boolean}},
      gguf_decoder_other_keys(),
      read_gguf_attention,
      write_gguf_attention,
      gguf_plain_tensors,
      false};
  return {"gpt_neox", read, write, tensors, &gguf};
}

}  // namespace pronghorn
