#include "model/block.h"

#include "ops/pointwise.h"

namespace pronghorn {

Block::Block(const BlockConfig& config, const ModelConfig& model, const LayerContext& context,
             const ParameterScope& scope, int64_t layer)
    : layer_(layer),
      mixer_norm_(scope.child("mixer_norm"), model.norm, model.hidden_size, model.norm_epsilon,
                  model.norm_bias) {
  const bool several = config.mixers.size() > 1;
  for (size_t i = 0; i < config.mixers.size(); ++i) {
    const nlohmann::json& mixer = config.mixers[i];
    const ParameterScope inner =
        several ? scope.child("mixers").child(std::to_string(i)) : scope.child("mixer");
    const MixerType& type = find_mixer_type(mixer.at("type").get<std::string>(), "block");
    mixers_.push_back(type.create(mixer, context, inner));
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
    feed_forward_ = type.create(config.feed_forward, context, scope.child("ffn"));
  }
}

Stream Block::forward(const Context& context, const Stream& stream,
                      const CheckedBatch& batch) const {
  Tensor sum = stream.sum, normed;
  if (stream.delta.defined()) {
    std::tie(sum, normed) = mixer_norm_.add_forward(context, stream.sum, stream.delta);
  } else {
    normed = mixer_norm_.forward(context, sum);
  }
  Tensor mixed = mix(context, normed, batch);
  if (feed_forward_ == nullptr) return {sum, mixed};
  std::tie(sum, normed) = ffn_norm_.add_forward(context, sum, mixed);
  return {sum, feed_forward_->forward(context, normed)};
}

Tensor Block::mix(const Context& context, const Tensor& x, const CheckedBatch& batch) const {
  JournalSlot slot{layer_, 0};
  if (mixers_.size() == 1) return mixers_.front()->forward(context, x, batch, slot);
  Tensor total;
  for (size_t i = 0; i < mixers_.size(); ++i) {
    const Tensor branch =
        branch_norms_[i].forward(context, mixers_[i]->forward(context, x, batch, slot));
    total = total.defined() ? add(context, total, branch) : branch;
    slot.index += static_cast<int64_t>(mixers_[i]->journals().size());
  }
  return scale(context, total, 1.0f / static_cast<float>(mixers_.size()));
}

std::vector<JournalShape> Block::journals() const {
  std::vector<JournalShape> all;
  for (const auto& mixer : mixers_) {
    for (JournalShape& shape : mixer->journals()) all.push_back(std::move(shape));
  }
  return all;
}

std::vector<LearningMemory> Block::memories() const {
  std::vector<LearningMemory> all;
  JournalSlot slot{layer_, 0};
  for (const auto& mixer : mixers_) {
    if (const auto memory = mixer->memory(slot)) all.push_back(*memory);
    slot.index += static_cast<int64_t>(mixer->journals().size());
  }
  return all;
}

TokenCost Block::cost(double context) const {
  TokenCost total;
  for (const auto& mixer : mixers_) {
    const TokenCost cost = mixer->cost(context);
    total.matmul += cost.matmul;
    total.sequence += cost.sequence;
  }
  if (feed_forward_ != nullptr) total.matmul += feed_forward_->cost().matmul;
  return total;
}

}  // namespace pronghorn
