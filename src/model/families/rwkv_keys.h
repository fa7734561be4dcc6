// What the families of RWKV share, as the library flash-linear-attention publishes them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/tensor_rules.h"

namespace pronghorn {

// The settings of the model; throws Error for layers of attention.
nlohmann::json read_rwkv_settings(ConfigReader& reader, int64_t hidden_size);

// Width of the channel mix: hidden_ratio (`ratio`) x hidden_size up to the next multiple of 32,
// unless given.
int64_t read_channel_mix_size(ConfigReader& reader, int64_t hidden_size, double ratio);

// Whether it is a channel mix with, or without, a gate.
bool is_channel_mix(const nlohmann::json& feed_forward, bool receptance);

// The keys of a uniform model with a channel mix, apart from its mixer's.
nlohmann::json write_rwkv_settings(const ModelConfig& config, const std::string& model_type,
                                   const std::string& architecture);

// The tensors; rules: what goes before renaming.
TensorRules rwkv_tensors(const ModelConfig& config, const std::vector<TensorRule>& rules);

}  // namespace pronghorn
