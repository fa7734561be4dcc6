#include "layers/subllm.h"

#include <string_view>
#include <utility>

#include "base/random.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

// Settings of the paper's published code.
constexpr double kScoreLearningRate = 0.5;                  // of the other parameters'
constexpr double kFirstBalancer = 1, kLastBalancer = 0.25;  // probability that a step is balanced
constexpr double kShareTolerance = 0.05;                    // of positive scores around keep

// True with a probability, once and for all for a step of a span.
bool chance(std::string_view what, int64_t span, int64_t step, double probability) {
  Random random(static_cast<uint64_t>(span), what);
  random.set_counter(static_cast<uint64_t>(step));
  return random.uniform() < probability;
}

}  // namespace

SubllmScore::SubllmScore(const SubsampleConfig& config, int64_t span, int64_t hidden_size,
                         double initializer_range, const ParameterScope& scope)
    : span_(span),
      keep_(config.keep.at(static_cast<size_t>(span))),
      balancer_scale_(config.balancer_scale),
      balancer_steps_(config.balancer_steps),
      bypass_steps_(config.bypass_steps),
      score_(scope.tensor("score.weight", {1, hidden_size},
                          score_initializer(config, hidden_size, initializer_range), Decay::no,
                          kScoreLearningRate)),
      bypass_scale_(
          scope.tensor("bypass_scale", {hidden_size}, initializers::constant(kBypassScale))) {
  if (config.score_bias) {
    score_shift_ = scope.average("score.shift", {hidden_size});
    score_bias_ = scope.average("score.bias", {1});
  }
  if (config.score_norm) unit_ = Tensor::full({hidden_size}, 1);
}

SpanChoice SubllmScore::choose(const LayerInput& input, const Tensor& x) const {
  const Context& context = input.context;
  const CheckedBatch& batch = input.batch;
  // In f32 always: a threshold must not depend on how products are rounded.
  Context exact = context;
  exact.precision = Precision::f32;
  // Under a step of training shift and bias follow the rows and not the loss.
  const bool counted = context.training_step && score_bias_.defined();
  Tensor rows = unit_.defined() ? rms_norm(exact, x, unit_, kScoreNormEpsilon) : x;
  if (score_shift_.defined()) {
    rows = counted ? centre(exact, rows, batch, score_shift_) : add_bias(exact, rows, score_shift_);
  }
  Tensor scores = linear(exact, rows, score_, counted ? score_bias_.detach() : score_bias_);
  if (counted) scores = balance_share(context, scores, batch, score_bias_, keep_);
  const int64_t step = context.training_step.value_or(0);
  if (context.training_step &&
      chance("balancer", span_, step,
             scheduled(kFirstBalancer, kLastBalancer, step, balancer_steps_))) {
    BalanceBounds bounds;
    if (!counted) {
      bounds.least_share = keep_ - kShareTolerance;
      bounds.most_share = keep_ + kShareTolerance;
    }
    bounds.gradient_scale = balancer_scale_;
    scores = balance(context, scores, bounds);
  }
  RowSelection selection = select(context, scores, batch);
  const Tensor weights = selected_weights(context, scores, selection);
  return {scores, std::move(selection), weights};
}

RowSelection SubllmScore::select(const Context& context, const Tensor& scores,
                                 const CheckedBatch& batch) const {
  if (context.tape == nullptr) return select_positive(scores, batch);
  const bool reversed =
      context.training_step && chance("reversed", span_, *context.training_step, 0.5);
  return select_highest(scores, batch, keep_, reversed);
}

Tensor SubllmScore::bypass_scale(const Context& context) const {
  return limited_bypass_scale(context, bypass_scale_, bypass_steps_);
}

}  // namespace pronghorn
