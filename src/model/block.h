// Block: one step of a pattern: a norm and its mixers, then optionally a norm and a feed-forward.
#pragma once

#include <memory>
#include <vector>

#include "layers/layer.h"
#include "model/config.h"

namespace pronghorn {

// The residual stream between two blocks: its value is sum + delta, where the addition is left to
// the next norm, which does both in one pass. delta may be undefined (zero).
struct Stream {
  Tensor sum;
  Tensor delta;
};

class Block {
 public:
  // layer: index of the block in the model, which is where its journals live in a SequenceState.
  Block(const BlockConfig& config, const ModelConfig& model, const LayerContext& context,
        const ParameterScope& scope, int64_t layer);

  // Several mixers side by side see the same input; the outputs, each under a norm of its own, are
  // averaged (Hymba, arXiv 2411.13676, equation 3).
  Stream forward(const Context& context, const Stream& stream, const CheckedBatch& batch) const;

  std::vector<JournalShape> journals() const;
  std::vector<LearningMemory> memories() const;
  TokenCost cost(double context) const;

 private:
  Tensor mix(const Context& context, const Tensor& x, const CheckedBatch& batch) const;

  int64_t layer_;
  Norm mixer_norm_, ffn_norm_;
  std::vector<std::unique_ptr<Mixer>> mixers_;
  std::vector<Norm> branch_norms_;  // one a mixer if there are several
  std::unique_ptr<FeedForward> feed_forward_;
};

}  // namespace pronghorn
