// Multi-head latent attention in GGUF files: of the architecture deepseek2, where it counts as
// attention with one head of keys and values as wide as the latent; of deepseek32, with an indexer
// beside it; and of minicpm3.
#pragma once

#include <string_view>
#include <vector>

#include "model/gguf_format.h"

namespace pronghorn {

// The keys of a decoder with latent attention and some more; and those that read() looks at.
std::vector<GgufKey> gguf_mla_keys(const std::vector<GgufKey>& more = {});
std::vector<std::string_view> gguf_mla_other_keys();

// Heads and rotary positions. `mla` in names of keys: sizes of heads as they are multiplied out.
void read_gguf_mla(const GgufModel& file, nlohmann::json& config);
void write_gguf_mla(const ModelConfig& config, const nlohmann::json& json, GgufModel& file);

// The matrices of keys and values are a stack of heads each; older files, and those of minicpm3,
// have them in one matrix.
TensorRules gguf_mla_tensors(const ModelConfig& config, bool one_matrix = false);

}  // namespace pronghorn
