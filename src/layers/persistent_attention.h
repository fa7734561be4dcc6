// Attention to a window of the sequence and to learned keys and values that do not depend on it
// (persistent memory, arXiv 2501.00663, section 3.3): the short-term memory of Titans' layers.
#pragma once

#include <vector>

#include "layers/layer.h"
#include "ops/attention.h"

namespace pronghorn {

class PersistentAttention {
 public:
  // config: as completed by complete_memory_and_window().
  PersistentAttention(const nlohmann::json& config, const LayerContext& context,
                      const ParameterScope& scope, const StateScope& states);

  // [rows, heads head_dim], before any projection.
  Tensor forward(const LayerInput& input, const Tensor& x) const;

  // As Mixer::sequence_cost().
  double sequence_cost(double context) const;
  int64_t width() const { return options_.heads * options_.head_dim; }

 private:
  AttentionOptions options_;
  int64_t persistent_ = 0;
  double rope_theta_ = 0;
  JournalSlot key_value_;
  Weight q_proj_, k_proj_, v_proj_;
  Tensor persistent_keys_, persistent_values_;
};

// Reads persistent and rope_theta into `config`, which has heads and head_dim.
void complete_persistent_memory(ConfigReader& reader, nlohmann::json& config);

// The configuration of a mixer of a neural memory and a PersistentAttention.
nlohmann::json complete_memory_and_window(ConfigReader& reader, const LayerContext& context);

}  // namespace pronghorn
