// Block: one step of a pattern: mixers, a feed-forward or both, each with its norms.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "layers/layer.h"
#include "model/config.h"
#include "model/side.h"

namespace pronghorn {

// The residual stream between two blocks: its value is sum + delta, where the addition is left to
// the next norm, which does both in one pass. delta may be undefined (zero).
struct Stream {
  Tensor sum;
  Tensor delta;

  // sum + delta
  Tensor value(const Context& context) const;
};

// norm(sum + delta)
Tensor normalized(const Norm& norm, const Context& context, const Stream& stream);

using MixersSeen = std::function<void(const Tensor& given, const Tensor& gave)>;

class Block {
 public:
  // state_layer: which layer of a SequenceState its journals are. side_owner: the scope of the
  // block whose side has the weights of this one's; null: it has its own.
  Block(const BlockConfig& config, const ModelConfig& model, LayerContext context,
        const ParameterScope& scope, int64_t state_layer,
        const ParameterScope* side_owner = nullptr);

  // Several mixers side by side see the same input; the outputs, each under a norm of its own, are
  // averaged (Hymba, arXiv 2411.13676, equation 3), or added as they are (Falcon-H1, 2507.22448).
  // seen: is told what the mixers are given and what they give together; may be empty.
  Stream forward(const LayerInput& input, const Stream& stream, const MixersSeen& seen = {}) const;

  // forward() in parts, between which something else may run: the second part is the
  // feed-forward's, where it is given what the mixers made. Blocks with a bypass have no parts.
  bool has_two_parts() const { return feeds_after_mixers() && !bypass_scale_.defined(); }
  Stream first_part(const LayerInput& input, const Stream& stream,
                    const MixersSeen& seen = {}) const;
  Stream second_part(const LayerInput& input, const Stream& stream) const {
    return feed(input, stream);
  }

  // Of all its layers, in the order of their slots.
  const std::vector<JournalShape>& journals() const { return journals_; }
  const std::vector<std::unique_ptr<Mixer>>& mixers() const { return mixers_; }
  // As Mixer::context_limit(), of all of them.
  int64_t context_limit() const;
  // Forward work of one token whose context is `context` tokens long.
  TokenCost cost(double context) const;

 private:
  // Whether the feed-forward is given what the mixers made.
  bool feeds_after_mixers() const;
  // forward() without the bypass.
  Stream run(const LayerInput& input, const Stream& stream, const MixersSeen& seen) const;
  // The feed-forward's part of forward(), where it follows the mixers.
  Stream feed(const LayerInput& input, const Stream& stream) const;
  // What the mixers' part begins with: the stream with its delta added, and the mixers' input.
  std::pair<Tensor, Tensor> enter_mixers(const LayerInput& input, const Stream& stream) const;
  Tensor mix(const LayerInput& input, const Tensor& x) const;
  // What a part gave, as it is added to the stream; factor: norm_residual's.
  Tensor addend(const Context& context, const Norm& norm, const Tensor& given,
                double BlockConfig::NormResidual::*factor) const;
  // The stream that a part is added to: `sum`, or what the part was given.
  Tensor base(const Context& context, const Tensor& sum, const Tensor& entered,
              double BlockConfig::NormResidual::*factor) const;

  std::vector<JournalShape> journals_;
  double matrix_size_ = 0;  // numbers of the matrices that a token is multiplied with
  // Undefined where the configuration has none.
  Norm mixer_norm_, mixer_post_norm_, ffn_norm_, ffn_post_norm_;
  BlockConfig::Residual residual_;
  float residual_multiplier_;
  std::optional<Side> side_;
  std::vector<std::unique_ptr<Mixer>> mixers_;
  std::vector<Norm> branch_norms_;  // one per mixer if several are averaged
  std::unique_ptr<FeedForward> feed_forward_;
  std::optional<BlockConfig::NormResidual> norm_residual_;
  int64_t bypass_steps_ = 0;
  Tensor bypass_scale_;  // [hidden_size]; undefined without a bypass
};

}  // namespace pronghorn
