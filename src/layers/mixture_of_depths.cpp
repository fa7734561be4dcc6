#include "layers/mixture_of_depths.h"

#include <cmath>
#include <utility>

#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {

DepthRouter::DepthRouter(const SubsampleConfig& config, int64_t span, int64_t hidden_size,
                         double initializer_range, const ParameterScope& scope)
    : keep_(config.keep.at(static_cast<size_t>(span))),
      predictor_loss_(config.predictor_loss),
      score_norm_(config.score_norm),
      unit_(Tensor::full({hidden_size}, 1)),
      score_(scope.tensor("score.weight", {1, hidden_size},
                          score_initializer(config, hidden_size, initializer_range))) {
  if (config.predictor == SubsampleConfig::Predictor::router) return;
  const ParameterScope predictor = scope.child("predictor");
  const int64_t size = config.predictor_size;
  const Initializer zero = initializers::constant(0);
  // Tensors and no matrices, as the score: what decides must not depend on how weights are stored.
  up_ = Weight(predictor.tensor("up_proj.weight", {size, hidden_size},
                                score_initializer(config, hidden_size, initializer_range),
                                Decay::yes));
  up_bias_ = predictor.tensor("up_proj.bias", {size}, zero);
  down_ = Weight(predictor.tensor("down_proj.weight", {1, size},
                                  initializers::normal(initializer_range), Decay::yes));
  down_bias_ = predictor.tensor("down_proj.bias", {1}, zero);
}

SpanChoice DepthRouter::choose(const LayerInput& input, const Tensor& x) const {
  const Context& context = input.context;
  // In f32 always: a threshold must not depend on how products are rounded.
  Context exact = context;
  exact.precision = Precision::f32;
  const Tensor rows = score_norm_ ? rms_norm(exact, x, unit_, kScoreNormEpsilon) : x;
  const Tensor scores = linear(exact, rows, score_);
  const bool classifies = up_bias_.defined();
  SpanChoice choice;
  if (context.tape == nullptr) {
    choice.scores = classifies ? predicted(exact, rows) : scores;
    choice.selection = select_positive(choice.scores, input.batch);
  } else {
    choice.scores = scores;
    choice.selection = select_highest(scores, input.batch, keep_, false);
    choice.selection.penalties.clear();
    if (input.carry.wants_losses()) {
      // The classifier learns from the rows and teaches them nothing.
      const Tensor logits = classifies ? predicted(exact, rows.detach()) : scores;
      input.carry.add_loss("predictor", selection_loss(exact, logits, choice.selection),
                           predictor_loss_);
    }
  }
  choice.weights = gather_rows(context, scores, choice.selection.rows);
  return choice;
}

Tensor DepthRouter::predicted(const Context& context, const Tensor& rows) const {
  const Tensor inside = activate(context, linear(context, rows, up_, up_bias_), Activation::silu);
  return linear(context, inside, down_, down_bias_);
}

double DepthRouter::cost() const {
  const int64_t classifier = up_bias_.defined() ? up_.size() + down_.size() : 0;
  return 2.0 * static_cast<double>(score_.size() + classifier);
}

}  // namespace pronghorn
