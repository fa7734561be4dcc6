// GGUF files of the families of attention and a feed-forward: what they have in common.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/gguf_format.h"

namespace pronghorn {

std::vector<GgufKey> gguf_decoder_keys();
// The same and some more, or others in place of those with the same name.
std::vector<GgufKey> gguf_decoder_keys(const std::vector<GgufKey>& more);
std::vector<std::string_view> gguf_decoder_other_keys();

// The sizes of heads; rotary positions of a part of each, and their scaling: by keys, or by
// divisors that files hold as tensors (`rope_freqs`, `rope_factors_short`, `rope_factors_long`).
void read_gguf_attention(const GgufModel& file, nlohmann::json& config);
void write_gguf_attention(const ModelConfig& config, const nlohmann::json& json, GgufModel& file);

// The rotary positions alone. rope: of a layer; score_growth: mscale_all_dim of latent attention,
// 0: none.
void read_gguf_rope(const GgufModel& file, nlohmann::json& config);
void write_gguf_rope(const nlohmann::json& rope, double score_growth, GgufModel& file);

// Whether any layer has a tensor of that name, such as "attn_q.bias".
bool gguf_has_in_a_layer(const GgufModel& file, std::string_view name);
// attention_bias and mlp_bias of families that read them: whether the tensors are there.
void read_gguf_biases(const GgufModel& file, nlohmann::json& config);

// Layers with a window, the last of each `period` without (0: all with): layer_types. A list or
// another period in the file counts for more.
void read_gguf_windows(const GgufModel& file, int64_t period, nlohmann::json& config);
void write_gguf_windows(const nlohmann::json& config, int64_t period, GgufModel& file);

// Of models that fill in masked tokens: the token that masks, which is `fallback` where a file does
// not say it, and a check of whether rows score the tokens after them. To write the same.
void read_gguf_diffusion(const GgufModel& file, int64_t fallback, bool shift,
                         nlohmann::json& config);
void write_gguf_diffusion(const ModelConfig& config, GgufModel& file);

// What differs between the tensors of architectures.
struct GgufTensors {
  // In the query and key projections the two channels that one angle turns are neighbours.
  bool rope_pairs = false;
  // Whether the output of attention and the feed-forward may have biases.
  bool biases = false;
  // Whether divisors of rotary angles are read from tensors.
  bool rope_tables = false;
  // What the norm before the feed-forward is called.
  std::string ffn_norm = "ffn_norm";
};
TensorRules gguf_decoder_tensors(const ModelConfig& config, const GgufTensors& options);
// Its parts: rules for a mixer of attention, without what stands before the names on either side,
// and for everything but mixers.
std::vector<TensorRule> gguf_attention_rules(const nlohmann::json& mixer,
                                             const GgufTensors& options);
TensorRules gguf_layer_tensors(const GgufTensors& options);
// Of the older families: queries, keys and values in one, biases and LayerNorm everywhere, a
// feed-forward without a gate.
TensorRules gguf_plain_tensors(const ModelConfig& config);

}  // namespace pronghorn
