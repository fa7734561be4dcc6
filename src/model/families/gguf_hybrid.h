// GGUF files of the families whose layers are of several kinds, or have no attention: what they
// have in common.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/families/gguf_decoder.h"
#include "model/families/hybrid.h"

namespace pronghorn {

// The keys of a decoder whose number of key/value heads may be 0 in some layers, and `more`, which
// replace those of the same name.
std::vector<GgufKey> gguf_hybrid_keys(const std::vector<GgufKey>& more);
std::vector<std::string_view> gguf_hybrid_other_keys(const std::vector<std::string_view>& more);

// Which layers are attention: those with key/value heads. One number for all: each is.
std::vector<bool> read_gguf_attention_layers(const GgufModel& file, const nlohmann::json& config);
// The same as layer_types: "full_attention" for attention, `other` for the rest.
void read_gguf_layer_types(const GgufModel& file, const std::string& other, nlohmann::json& config);

// A list of `value` for some layers and 0 for the others.
GgufValue gguf_by_layer(const std::vector<bool>& layers, const nlohmann::json& value);
// The key/value heads of each layer.
void write_gguf_attention_layers(const ModelConfig& config, GgufModel& file);

// The width of a state's head, of which a file says how many there are and how wide all are.
int64_t read_gguf_state_head_dim(const GgufModel& file);
// ssm.inner_size.
void write_gguf_inner_size(int64_t channels, GgufModel& file);

// Keys of Mamba-2 where the family calls its sizes as Bamba does (mamba_n_heads, ..), but for the
// width of a head, which the other two read and write.
std::vector<GgufKey> gguf_mamba2_keys();
void read_gguf_mamba2(const GgufModel& file, nlohmann::json& config);
void write_gguf_mamba2(const ModelConfig& config, GgufModel& file);
// The same, and attention in some layers.
void write_gguf_mamba2_hybrid(const ModelConfig& config, const nlohmann::json& json,
                              GgufModel& file);

// In files of the architecture granitehybrid: whether there are rotary positions at all.
constexpr const char* kGgufTurned = "rope.scaling.finetuned";
// Whether such a file is of Bamba, which turns half of each head.
bool gguf_is_bamba(const GgufModel& file);

// Rules of recurrent mixers without what stands before the names on either side. Such files hold
// decays as -exp(A_log).
std::vector<TensorRule> gguf_mamba_rules();
std::vector<TensorRule> gguf_mamba2_rules(const ModelConfig& config);

// The tensors of a model whose mixers are attention and `others`; rules of `others` for attention
// come before those that decoders share.
TensorRules gguf_hybrid_tensors(const ModelConfig& config, const GgufTensors& options,
                                std::vector<MixerTensors> others);

}  // namespace pronghorn
