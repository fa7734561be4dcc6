// What the families share whose layers are attention with rotary positions and SwiGLU under
// RMSNorm: Llama, and those that add to it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/families/mapping.h"
#include "model/tensor_rules.h"

namespace pronghorn {

// In what such families differ.
struct DecoderTraits {
  bool bias = false;             // of the query, key and value projections
  bool qk_norm = false;          // RMSNorm of each head's query and key
  std::vector<int64_t> windows;  // of each layer; 0: it sees all tokens
};

// What the reference takes for keys that a configuration does not have; 0: as many key-value heads
// as heads, and heads that share hidden_size.
struct DecoderDefaults {
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
};

int64_t read_layer_count(ConfigReader& reader);

// The configuration of such a family, whose own keys have been read into `traits`.
ModelConfig read_decoder(ConfigReader reader, const DecoderTraits& traits,
                         const DecoderDefaults& defaults);

// Windows of the layers of a model that consists of such layers; empty if it is of another kind.
std::vector<int64_t> decoder_windows(const ModelConfig& config);

// The keys that the families share, for a model that has decoder_windows(). What they do not say
// is for expresses() to find.
nlohmann::json write_decoder(const ModelConfig& config, const std::string& model_type,
                             const std::string& architecture);

TensorRules decoder_tensors(const ModelConfig& config);

// The windows of Qwen's layers: use_sliding_window, sliding_window, max_window_layers (layers from
// there on have the window) and layer_types, which newer files spell out.
std::vector<int64_t> read_layer_windows(ConfigReader& reader);

// Those keys, if all windows are the same.
nlohmann::json write_layer_windows(const std::vector<int64_t>& windows);

}  // namespace pronghorn
