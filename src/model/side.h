// Side: attention and a feed-forward beside the stream of a block (Zamba, arXiv 2405.16712, section
// 2; Zamba2, arXiv 2411.15242). Its weights may be those of other blocks' sides.
#pragma once

#include <memory>

#include "layers/layer.h"
#include "model/config.h"

namespace pronghorn {

// With x the stream and e the embeddings that the model began with:
//   linear(ffn(norm(mixer(norm([x, e])))))
// is added to what the mixers of the block are given, and not to the stream.
class Side {
 public:
  // The name under which e is carried.
  static constexpr const char* kEmbeddings = "embeddings";

  // scope: where its weights are; what is never shared goes to scope.own().
  Side(const SideConfig& config, const ModelConfig& model, LayerContext context,
       const ParameterScope& scope, const StateScope& states);

  // x: [rows, hidden_size]; returns the same shape. Throws Error if no embeddings are carried.
  Tensor forward(const LayerInput& input, const Tensor& x) const;

  const Mixer& mixer() const { return *mixer_; }
  // As Mixer::sequence_cost().
  double sequence_cost(double context) const;

 private:
  Norm norm_, ffn_norm_;
  std::unique_ptr<Mixer> mixer_;
  std::unique_ptr<FeedForward> feed_forward_;
  Weight linear_;
};

}  // namespace pronghorn
