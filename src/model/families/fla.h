// What the families of flash-linear-attention share: the skeleton of a model around its recurrence.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/families/mapping.h"
#include "model/tensor_rules.h"

namespace pronghorn {

// Layers of one recurrence and a gated feed-forward.
struct FlaDecoder {
  int64_t hidden_size = 0, layers = 0, heads = 0;
  nlohmann::json settings, ffn;

  // The model. Throws Error for keys that nothing has read.
  ModelConfig finish(const ConfigReader& reader, const nlohmann::json& mixer) const;
};

// The sizes, the norm and the feed-forward; heads and hidden_ratio: the reference's where the file
// has none (heads 0: the key is not read).
FlaDecoder read_fla_decoder(ConfigReader& reader, int64_t heads, int64_t hidden_ratio = 4);

// Width of a head of hidden_size x `key` columns. Throws Error if that is not whole.
int64_t read_expanded_head(ConfigReader& reader, const std::string& key, double fallback,
                           const FlaDecoder& decoder);

// Taps of the convolutions, by use_short_conv and conv_size; 0: none.
int64_t read_fla_taps(ConfigReader& reader, bool fallback);

// Throws Error unless the key has this value or is absent.
void require_fla(ConfigReader& reader, const std::string& key, bool value);

// The mixer that all layers have, if the model is one of such layers; else null.
const nlohmann::json* fla_mixer(const ModelConfig& config, const std::string& type);

// The keys that the families share, for a model that has an fla_mixer().
nlohmann::json write_fla_decoder(const ModelConfig& config, const std::string& model_type,
                                 const std::string& architecture);

// How often hidden_size goes into heads of a width, as expand_k and expand_v have it.
double fla_expansion(const ModelConfig& config, const nlohmann::json& mixer,
                     const std::string& width);

void write_fla_taps(const nlohmann::json& mixer, nlohmann::json& json);

// Rules of a mixer's tensors, without the names in front, go before renaming; `whole`: the model's.
TensorRules fla_tensors(const ModelConfig& config, const std::vector<TensorRule>& rules,
                        const std::vector<TensorRule>& whole = {});

// Throws Error unless num_kv_heads is absent or as many as the heads.
void require_own_keys(ConfigReader& reader, const FlaDecoder& decoder);

// num_heads, head_dim (fallback), num_v_heads and expand_v (fallback) of the delta rules, as
// settings of their mixers; and these as keys.
nlohmann::json read_fla_value_heads(ConfigReader& reader, const FlaDecoder& decoder,
                                    int64_t head_dim, double expand);
void write_fla_value_heads(const nlohmann::json& mixer, nlohmann::json& json);

// fla_tensors() of GLA and RetNet, whose norm is named after its gate if there is one.
TensorRules fla_gated_tensors(const ModelConfig& config, const std::string& type,
                              std::vector<TensorRule> rules);

// The rules for the three short convolutions.
std::vector<TensorRule> fla_convolutions();

}  // namespace pronghorn
