#include "model/families/rwkv_keys.h"

#include "base/error.h"
#include "model/families/fla.h"
#include "model/families/mapping.h"

namespace pronghorn {

nlohmann::json read_rwkv_settings(ConfigReader& reader, int64_t hidden_size) {
  require(!reader.has("attn"), reader.path("attn"),
          "layers of attention in place of some are not supported");
  reader.one_of("hidden_act", {"sqrelu"}, "sqrelu");
  for (const char* key : {"attn_mode", "fuse_linear_cross_entropy", "use_l2warp"}) {
    reader.ignore(key);
  }
  return {{"vocab_size", reader.integer("vocab_size", 32000, 1)},
          {"hidden_size", hidden_size},
          {"tie_embeddings", reader.boolean("tie_word_embeddings", false)},
          {"embedding_norm", reader.boolean("norm_first", true)},
          {"norm",
           {{"type", "layer_norm"},
            {"bias", reader.boolean("norm_bias", true)},
            {"epsilon", reader.number("norm_eps", 1e-5, 0)}}}};
}

int64_t read_channel_mix_size(ConfigReader& reader, int64_t hidden_size, double ratio) {
  constexpr int64_t kMultiple = 32;
  ratio = reader.number("hidden_ratio", ratio, 0.01, 1024);
  const auto size = static_cast<int64_t>(ratio * static_cast<double>(hidden_size));
  return reader.integer("intermediate_size", (size + kMultiple - 1) / kMultiple * kMultiple, 1);
}

bool is_channel_mix(const nlohmann::json& feed_forward, bool receptance) {
  return !feed_forward.is_null() && feed_forward.at("type") == "channel_mix" &&
         feed_forward.at("receptance") == receptance;
}

nlohmann::json write_rwkv_settings(const ModelConfig& config, const std::string& model_type,
                                   const std::string& architecture) {
  nlohmann::json json = write_fla_decoder(config, model_type, architecture);
  json["hidden_act"] = "sqrelu";
  json["norm_first"] = config.embedding_norm;
  json["norm_bias"] = config.norm_bias;
  return json;
}

TensorRules rwkv_tensors(const ModelConfig& config, const std::vector<TensorRule>& rules) {
  const std::string layer = "layers.*.", theirs = "model.layers.*.";
  TensorRules tensors;
  tensors.rules = rules;
  const std::vector<TensorRule> rest = {{{"embeddings.weight"}, {"model.embeddings.weight"}, {}},
                                        {{"embedding_norm.*"}, {"model.layers.0.pre_norm.*"}, {}},
                                        {{layer + "mixer_norm.*"}, {theirs + "attn_norm.*"}, {}},
                                        {{layer + "mixer.*"}, {theirs + "attn.*"}, {}},
                                        {{layer + "ffn_norm.*"}, {theirs + "ffn_norm.*"}, {}},
                                        {{layer + "ffn.*"}, {theirs + "ffn.*"}, {}},
                                        {{"norm.*"}, {"model.norm.*"}, {}},
                                        {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  tensors.rules.insert(tensors.rules.end(), rest.begin(), rest.end());
  tensors.passed_over = tied_head(config, "lm_head.weight");
  return tensors;
}

}  // namespace pronghorn
