#include "model/families.h"

#include <algorithm>

#include "base/error.h"
#include "base/quote.h"
#include "model/computation.h"

namespace pronghorn {

const std::vector<Family>& families() {
  static const std::vector<Family> all = {llama_family(),
                                          mistral_family(),
                                          qwen2_family(),
                                          qwen3_family(),
                                          smollm3_family(),
                                          gemma2_family(),
                                          gemma3_text_family(),
                                          phi3_family(),
                                          olmo2_family(),
                                          granite_family(),
                                          mixtral_family(),
                                          qwen2_moe_family(),
                                          qwen3_moe_family(),
                                          olmoe_family(),
                                          granitemoe_family(),
                                          gpt_oss_family(),
                                          gpt2_family(),
                                          gpt_neox_family(),
                                          bitnet_family(),
                                          lfm2_family(),
                                          lfm2_moe_family(),
                                          qwen3_next_family(),
                                          qwen3_5_text_family(),
                                          qwen3_5_family(),
                                          qwen3_5_moe_text_family(),
                                          qwen3_5_moe_family(),
                                          olmo_hybrid_family(),
                                          granitemoehybrid_family(),
                                          bamba_family(),
                                          falcon_h1_family(),
                                          nemotron_h_family(),
                                          zamba2_family(),
                                          samba_family(),
                                          recurrent_gemma_family(),
                                          hymba_family(),
                                          jamba_family(),
                                          minicpm3_family(),
                                          deepseek_v2_family(),
                                          deepseek_v3_family(),
                                          deepseek_v32_family(),
                                          kimi_k2_family(),
                                          kimi_k25_family(),
                                          sarvam_mla_family(),
                                          youtu_family(),
                                          glm4_moe_family(),
                                          glm4_moe_lite_family(),
                                          kimi_linear_family(),
                                          minimax_family(),
                                          xlstm_family(),
                                          gla_family(),
                                          retnet_family(),
                                          hgrn_family(),
                                          hgrn2_family(),
                                          delta_net_family(),
                                          gated_deltanet_family(),
                                          kda_family(),
                                          rwkv6_family(),
                                          rwkv7_family(),
                                          llada_family(),
                                          llada_moe_family(),
                                          dream_family(),
                                          sdar_family(),
                                          mamba_family(),
                                          falcon_mamba_family(),
                                          mamba2_family(),
                                          mamba3_family(),
                                          mamba_ssm_family(),
                                          pronghorn_family()};
  return all;
}

const Family& find_family(std::string_view model_type, std::string_view where) {
  std::vector<std::string> names;
  for (const Family& family : families()) {
    if (family.model_type == model_type) return family;
    names.push_back(family.model_type);
  }
  throw Error(where, fmt::format("model family {} is not known here", quote(model_type)),
              fmt::format("known: {}", fmt::join(names, ", ")));
}

const Family& find_family(const ConfigReader& config) {
  // The original library of Mamba names no family, and neither do models trained with it; some are
  // labelled with the name of the other format afterwards.
  const nlohmann::json& type = config.peek("model_type");
  const bool may_be_original = type.is_null() || type == "mamba" || type == "mamba2";
  if (may_be_original && config.has("d_model") && config.has("n_layer") &&
      !config.has("hidden_size") && !config.has("pattern")) {
    return find_family("mamba_ssm", config.where());
  }
  ConfigReader reader = config;
  return find_family(reader.string("model_type", "pronghorn"), reader.path("model_type"));
}

bool expresses(const Family& family, const ModelConfig& config) {
  ModelConfig whole = config;
  whole.vocab_size = std::max<int64_t>(whole.vocab_size, 1);  // 0: its tokenizer is yet to say
  try {
    const std::optional<nlohmann::json> json = family.write(whole);
    return json &&
           computation(family.read(ConfigReader(*json, family.model_type))) == computation(whole);
  } catch (const Error&) {
    return false;
  }
}

const Family& family_for(const ModelConfig& config) {
  for (const Family& family : families()) {
    const bool own = family.model_type == config.family;
    if (own && expresses(family, config)) return family;
  }
  for (const Family& family : families()) {
    if (expresses(family, config)) return family;
  }
  throw Error("checkpoint", "no family can express this configuration");
}

}  // namespace pronghorn
