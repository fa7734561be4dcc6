// Published model families: how their configurations and tensors map on to ours. A family is one
// file; it never has a forward of its own.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/tensor_rules.h"

namespace pronghorn {

struct GgufFormat;

struct Family {
  std::string model_type;  // of its config.json

  // Its configuration as one of ours. Throws Error for settings that this engine cannot honour.
  ModelConfig (*read)(ConfigReader reader);

  // One of our configurations as its config.json, or nothing. It need not say all of it:
  // expresses() reads it back and compares.
  std::optional<nlohmann::json> (*write)(const ModelConfig& config);

  // How its checkpoints hold the tensors of such a model.
  TensorRules (*tensors)(const ModelConfig& config);

  // How GGUF files hold such a model (model/gguf_format.h); null: they do not.
  const GgufFormat* gguf = nullptr;
};

// Those whose file format we write and read, the most widely understood first; "pronghorn" is the
// last.
const std::vector<Family>& families();

// Throws Error(where, ...) with the families there are.
const Family& find_family(std::string_view model_type, std::string_view where);

// The family of a config.json: that of its model_type, or what its keys tell where it has none.
const Family& find_family(const ConfigReader& config);

// Whether the family has a config.json from which it reads this very configuration, but for what
// only training needs.
bool expresses(const Family& family, const ModelConfig& config);

// The family that `config` was read from, if that expresses it, else the most widely understood one
// that does.
const Family& family_for(const ModelConfig& config);

// The families, each in its own file.
Family llama_family();
Family mistral_family();
Family qwen2_family();
Family qwen3_family();
Family smollm3_family();
Family gemma2_family();
Family gemma3_text_family();
Family phi3_family();
Family olmo2_family();
Family granite_family();
Family mixtral_family();
Family qwen2_moe_family();
Family qwen3_moe_family();
Family olmoe_family();
Family granitemoe_family();
Family gpt_oss_family();
Family gpt2_family();
Family gpt_neox_family();
Family lfm2_family();
Family lfm2_moe_family();
Family qwen3_next_family();
Family qwen3_5_text_family();
Family qwen3_5_family();
Family qwen3_5_moe_text_family();
Family qwen3_5_moe_family();
Family olmo_hybrid_family();
Family granitemoehybrid_family();
Family bamba_family();
Family falcon_h1_family();
Family nemotron_h_family();
Family zamba2_family();
Family samba_family();
Family recurrent_gemma_family();
Family rwkv6_family();
Family rwkv7_family();
Family llada_family();
Family llada_moe_family();
Family dream_family();
Family sdar_family();
Family hymba_family();
Family jamba_family();
Family minicpm3_family();
Family deepseek_v2_family();
Family deepseek_v3_family();
Family deepseek_v32_family();
Family kimi_k2_family();
Family kimi_k25_family();
Family sarvam_mla_family();
Family youtu_family();
Family glm4_moe_family();
Family glm4_moe_lite_family();
Family bitnet_family();
Family mamba_family();
Family falcon_mamba_family();
Family mamba2_family();
Family mamba3_family();
Family kimi_linear_family();
Family minimax_family();
Family xlstm_family();
Family gla_family();
Family retnet_family();
Family hgrn_family();
Family hgrn2_family();
Family delta_net_family();
Family gated_deltanet_family();
Family kda_family();
Family mamba_ssm_family();
Family pronghorn_family();

}  // namespace pronghorn
