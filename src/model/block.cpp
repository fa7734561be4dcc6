#include "model/block.h"

#include "ops/pointwise.h"

namespace pronghorn {

Tensor Stream::value(const Context& context) const {
  return delta.defined() ? add(context, sum, delta) : sum;
}

Tensor normalized(const Norm& norm, const Context& context, const Stream& stream) {
  return stream.delta.defined() ? norm.add_forward(context, stream.sum, stream.delta).second
                                : norm.forward(context, stream.sum);
}

Block::Block(const BlockConfig& config, const ModelConfig& model, const LayerContext& context,
             const ParameterScope& scope, int64_t state_layer)
    : mixer_norm_(scope.child("mixer_norm"), model.norm, model.hidden_size, model.norm_epsilon,
                  model.norm_bias) {
  const int64_t matrices_before = scope.store().matrix_size();
  const StateScope states(state_layer, journals_);
  const bool several = config.mixers.size() > 1;
  for (size_t i = 0; i < config.mixers.size(); ++i) {
    const nlohmann::json& mixer = config.mixers[i];
    const ParameterScope inner =
        several ? scope.child("mixers").child(std::to_string(i)) : scope.child("mixer");
    const MixerType& type = find_mixer_type(mixer.at("type").get<std::string>(), "block");
    mixers_.push_back(type.create(mixer, context, inner, states));
    if (several) {
      branch_norms_.emplace_back(scope.child("branch_norms").child(std::to_string(i)), model.norm,
                                 model.hidden_size, model.norm_epsilon, model.norm_bias);
    }
  }
  if (!config.feed_forward.is_null()) {
    ffn_norm_ = Norm(scope.child("ffn_norm"), model.norm, model.hidden_size, model.norm_epsilon,
                     model.norm_bias);
    const auto& type =
        find_feed_forward_type(config.feed_forward.at("type").get<std::string>(), "block");
    feed_forward_ = type.create(config.feed_forward, context, scope.child("ffn"), states);
  }
  matrix_size_ = scope.store().matrix_size() - matrices_before;
  if (feed_forward_ != nullptr) matrix_size_ -= feed_forward_->idle_weights();
}

Stream Block::forward(const LayerInput& input, const Stream& stream) const {
  const Context& context = input.context;
  Tensor sum = stream.sum, normed;
  if (stream.delta.defined()) {
    std::tie(sum, normed) = mixer_norm_.add_forward(context, stream.sum, stream.delta);
  } else {
    normed = mixer_norm_.forward(context, sum);
  }
  Tensor mixed = mix(input, normed);
  if (feed_forward_ == nullptr) return {sum, mixed};
  std::tie(sum, normed) = ffn_norm_.add_forward(context, sum, mixed);
  return {sum, feed_forward_->forward(input, normed)};
}

Tensor Block::mix(const LayerInput& input, const Tensor& x) const {
  if (mixers_.size() == 1) return mixers_.front()->forward(input, x);
  const Context& context = input.context;
  Tensor total;
  for (size_t i = 0; i < mixers_.size(); ++i) {
    const Tensor branch = branch_norms_[i].forward(context, mixers_[i]->forward(input, x));
    total = total.defined() ? add(context, total, branch) : branch;
  }
  return scale(context, total, 1.0f / static_cast<float>(mixers_.size()));
}

TokenCost Block::cost(double context) const {
  TokenCost total{2 * static_cast<double>(matrix_size_), 0};
  for (const auto& mixer : mixers_) total.sequence += mixer->sequence_cost(context);
  if (feed_forward_ != nullptr) total.sequence += feed_forward_->sequence_cost(context);
  return total;
}

}  // namespace pronghorn
