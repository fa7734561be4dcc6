// Attention to a window of the sequence and to learned keys and values that do not depend on it
// (persistent memory, arXiv 2501.00663, section 3.3): the short-term memory of Titans' layers.
#pragma once

#include "layers/layer.h"
#include "layers/neural_memory.h"
#include "layers/toolbox.h"
#include "ops/attention.h"
#include "ops/rope.h"

namespace pronghorn {

struct PersistentConfig {
  int64_t persistent = 0;
  double rope_theta = 0;

  // head_dim must be even, for rotary positions.
  void fields(ConfigFields& f, const HeadsConfig& heads);
};

// A neural memory and a PersistentAttention with heads of the same sizes.
struct MemoryAndWindowConfig {
  NeuralMemoryConfig memory;
  PersistentConfig attention;
  int64_t window = 0;

  void fields(ConfigFields& f, const LayerContext& context);
};

class PersistentAttention {
 public:
  PersistentAttention(const MemoryAndWindowConfig& config, const LayerContext& context,
                      const ParameterScope& scope, const StateScope& states);

  // [rows, heads head_dim], before any projection.
  Tensor forward(const LayerInput& input, const Tensor& x) const;

  // As Mixer::sequence_cost().
  double sequence_cost(double context) const;
  int64_t width() const { return options_.heads * options_.head_dim; }

 private:
  AttentionOptions options_;
  int64_t persistent_ = 0;
  SharedAngles angles_;
  JournalSlot key_value_;
  Weight q_proj_, k_proj_, v_proj_;
  Tensor persistent_keys_, persistent_values_;
};

}  // namespace pronghorn
