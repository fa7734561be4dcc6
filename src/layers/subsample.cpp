#include "layers/subsample.h"

#include <cmath>
#include <string>

#include "base/error.h"
#include "base/random.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

// Settings of the paper's published code.
constexpr double kScoreLearningRate = 0.5;  // of the other parameters'
constexpr float kScoreNormEpsilon = 1e-5f;
constexpr float kBypassScale = 0.5f;  // initial
constexpr double kFirstBypassLimit = 0.9, kLastBypassLimit = 0.2;
constexpr double kFirstBalancer = 1, kLastBalancer = 0.25;  // probability that a step is balanced
constexpr double kShareTolerance = 0.05;                    // of positive scores around keep

// Linear from `first` at step 0 to `last` at step `steps`.
double scheduled(double first, double last, int64_t step, int64_t steps) {
  if (step >= steps) return last;
  return first + (last - first) * static_cast<double>(step) / static_cast<double>(steps);
}

// True with a probability, once and for all for a step of a span.
bool chance(std::string_view what, int64_t span, int64_t step, double probability) {
  Random random(static_cast<uint64_t>(span), what);
  random.set_counter(static_cast<uint64_t>(step));
  return random.uniform() < probability;
}

}  // namespace

Subsample::Subsample(const SubsampleConfig& config, int64_t span, int64_t hidden_size,
                     double initializer_range, const ParameterScope& scope)
    : span_(span),
      keep_(config.keep.at(static_cast<size_t>(span))),
      balancer_scale_(config.balancer_scale),
      balancer_steps_(config.balancer_steps),
      bypass_steps_(config.bypass_steps),
      score_(scope.tensor(
          "score.weight", {1, hidden_size},
          // Of normalised rows: scores of unit size.
          initializers::normal(config.score_norm ? 1 / std::sqrt(static_cast<double>(hidden_size))
                                                 : initializer_range),
          Decay::no, kScoreLearningRate)),
      bypass_scale_(
          scope.tensor("bypass_scale", {hidden_size}, initializers::constant(kBypassScale))) {
  if (config.score_bias) {
    score_shift_ = scope.average("score.shift", {hidden_size});
    score_bias_ = scope.average("score.bias", {1});
  }
  if (config.score_norm) unit_ = Tensor::full({hidden_size}, 1);
}

Subsample::Span Subsample::enter(const Context& context, const Tensor& x,
                                 const CheckedBatch& batch) const {
  Tensor scores, weights, inner = x;
  RowSelection selection;
  if (batch.rows() > 0) {
    // In f32 always: a threshold must not depend on how products are rounded.
    Context exact = context;
    exact.precision = Precision::f32;
    // Under a step of training shift and bias follow the rows and not the loss.
    const bool counted = context.training_step && score_bias_.defined();
    Tensor rows = unit_.defined() ? rms_norm(exact, x, unit_, kScoreNormEpsilon) : x;
    if (score_shift_.defined()) {
      rows =
          counted ? centre(exact, rows, batch, score_shift_) : add_bias(exact, rows, score_shift_);
    }
    scores = linear(exact, rows, score_, counted ? score_bias_.detach() : score_bias_);
    if (counted) {
      scores = balance_share(context, scores, batch, score_bias_, keep_);
    }
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
    selection = select(context, scores, batch);
    weights = selected_weights(context, scores, selection);
    inner = gather_rows(context, x, selection.rows);
  } else {
    selection.counts.assign(batch.segments().size(), 0);
  }
  CheckedBatch inner_batch = selected_batch(batch, selection);
  for (size_t s = 0; s < batch.segments().size(); ++s) {
    const Segment& segment = batch.segments()[s];
    if (segment.state == nullptr || segment.parents.empty()) continue;
    const int64_t first = inner_batch.segments()[s].first_row, count = selection.counts[s];
    std::vector<int32_t> nodes;
    for (int64_t i = first; i < first + count; ++i) {
      const int32_t row = selection.rows[static_cast<size_t>(i)];
      nodes.push_back(row - static_cast<int32_t>(segment.first_row));
    }
    segment.state->set_tree_nodes(span_, std::move(nodes));
  }
  return {x, scores, std::move(selection), weights, inner, std::move(inner_batch)};
}

RowSelection Subsample::select(const Context& context, const Tensor& scores,
                               const CheckedBatch& batch) const {
  if (context.tape == nullptr) return select_positive(scores, batch);
  const bool reversed =
      context.training_step && chance("reversed", span_, *context.training_step, 0.5);
  return select_highest(scores, batch, keep_, reversed);
}

Tensor Subsample::leave(const Context& context, const Span& span, const Tensor& y) const {
  if (span.selection.rows.empty()) return span.outer;
  const Tensor scale =
      context.training_step
          ? limit(context, bypass_scale_,
                  static_cast<float>(scheduled(kFirstBypassLimit, kLastBypassLimit,
                                               *context.training_step, bypass_steps_)),
                  1)
          : bypass_scale_;
  return upsample(context, span.outer, y, span.weights, scale, span.selection.rows);
}

}  // namespace pronghorn
