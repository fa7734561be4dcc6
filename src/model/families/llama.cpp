// The Llama family (arXiv 2302.13971, 2307.09288): RMSNorm, rotary grouped-query attention, SwiGLU.
#include <array>

#include "base/error.h"
#include "model/families.h"
#include "model/families/mapping.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  ignore_common_keys(reader);
  const int64_t hidden = reader.integer("hidden_size", {}, 1);
  const int64_t heads = reader.integer("num_attention_heads", {}, 1);
  nlohmann::json mixer = {{"type", "attention"},
                          {"heads", heads},
                          {"kv_heads", reader.integer("num_key_value_heads", heads, 1)}};
  if (reader.has("head_dim")) mixer["head_dim"] = reader.integer("head_dim", {}, 1);
  reader.ignore("head_dim");
  double theta = 10000;
  // Newer files keep the rotary settings in an object of their own.
  if (reader.has("rope_parameters")) {
    ConfigReader rope = reader.object("rope_parameters");
    rope.one_of("rope_type", {"default"}, "default");
    theta = rope.number("rope_theta", theta, 1.0);
    rope.finish();
  }
  reader.ignore("rope_parameters");
  mixer["rope"] = {{"theta", reader.number("rope_theta", theta, 1.0)}};
  require(!reader.has("rope_scaling"), reader.path("rope_scaling"),
          "scaled rotary positions are not supported yet");
  reader.ignore("rope_scaling");
  mixer["bias"] = false;
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    require(!reader.boolean(key, false), reader.path(key), "true is not supported yet");
  }
  reader.one_of("hidden_act", {"silu"}, "silu");
  require(reader.integer("pretraining_tp", 1) == 1, reader.path("pretraining_tp"),
          "only 1 is supported");
  require(reader.number("attention_dropout", 0.0) == 0, reader.path("attention_dropout"),
          "dropout is not supported");
  reader.ignore("max_position_embeddings");

  const nlohmann::json settings = {
      {"vocab_size", reader.integer("vocab_size", {}, 1)},
      {"hidden_size", hidden},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", false)},
      {"norm", {{"type", "rms_norm"}, {"epsilon", reader.number("rms_norm_eps", 1e-6, 0)}}}};
  const nlohmann::json ffn = {{"type", "swiglu"},
                              {"size", reader.integer("intermediate_size", {}, 1)}};
  const int64_t layers = reader.integer("num_hidden_layers", {}, 1, kMaxBlocks);
  reader.finish();
  return uniform_config(reader, settings, {{"mixer", mixer}, {"ffn", ffn}}, layers);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const BlockConfig* block = uniform_block(config, "attention");
  if (block == nullptr || block->feed_forward.is_null()) return {};
  const nlohmann::json& mixer = block->mixers.front();
  if (block->feed_forward.at("type") != "swiglu" || config.norm != Norm::Kind::rms_norm ||
      mixer.at("window") != 0 || mixer.at("bias") == true || mixer.at("qk_norm") == true ||
      mixer.at("rope").is_null() || mixer.at("rope").at("rotary_dim") != mixer.at("head_dim")) {
    return {};
  }
  return nlohmann::json{{"model_type", "llama"},
                        {"architectures", {"LlamaForCausalLM"}},
                        {"vocab_size", config.vocab_size},
                        {"hidden_size", config.hidden_size},
                        {"num_hidden_layers", config.block_count()},
                        {"num_attention_heads", mixer.at("heads")},
                        {"num_key_value_heads", mixer.at("kv_heads")},
                        {"head_dim", mixer.at("head_dim")},
                        {"intermediate_size", block->feed_forward.at("size")},
                        {"hidden_act", "silu"},
                        {"rms_norm_eps", config.norm_epsilon},
                        {"rope_theta", mixer.at("rope").at("theta")},
                        {"max_position_embeddings", 131072},
                        {"tie_word_embeddings", config.tie_embeddings},
                        {"torch_dtype", "float32"}};
}

std::string published_name(const std::string& name) {
  if (name == "lm_head.weight") return name;
  if (name == "embeddings.weight") return "model.embed_tokens.weight";
  static const std::array<std::pair<std::string, std::string>, 4> rules = {{
      {"mixer_norm.", "input_layernorm."},
      {"mixer.", "self_attn."},
      {"ffn_norm.", "post_attention_layernorm."},
      {"ffn.", "mlp."},
  }};
  const auto [layer, rest] = split_layer_name(name);
  return "model." + layer + (layer.empty() ? rest : rename_prefix(rest, rules));
}

}  // namespace

Family llama_family() { return {"llama", read, write, published_name}; }

}  // namespace pronghorn
