// What the kinds of spans that run on other rows than those around them have in common
// (layers/subsample.h): their settings, the choice of the rows that enter, and the limits of a
// bypass scale in training.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "layers/layer.h"
#include "layers/parameters.h"
#include "ops/subsample.h"
#include "tensor/tensor.h"

namespace pronghorn {

struct SubsampleConfig {
  enum class Kind { subllm, mixture_of_depths, zipformer, patch_merging };
  // What decides in inference which rows enter a mixture of depths.
  enum class Predictor { classifier, router };

  Kind kind = Kind::subllm;
  std::vector<double> keep;  // share of the rows that enters, for each span in pattern order
  // Of Zipformer: rows that become one, for each span in pattern order; their inverses are `keep`.
  std::vector<int64_t> rates;
  // Columns of the rows in each span in pattern order; empty: those of the rows around it.
  std::vector<int64_t> widths;
  // The score reads the row divided by its root mean square, so that its size does not depend on
  // how far the residual stream has grown; the papers' scores read the row itself.
  bool score_norm = false;

  // Of SUBLLM. The score shifts the rows to a mean of 0 and has a bias to where the share of
  // positive scores is `keep`. Both are averages over training sequences and not learned from the
  // loss. Without them the balancer estimates that share, as the paper's does.
  bool score_bias = false;
  double balancer_scale = 0.04;  // size of the balancer's push, as a share of the gradient
  int64_t balancer_steps = 0;    // over which the balancer's probability falls from 1 to 0.25
  // Of Zipformer too: over which the bypass scale's lower limit falls from 0.9 to 0.2.
  int64_t bypass_steps = 0;

  // Of a mixture of depths.
  Predictor predictor = Predictor::classifier;
  int64_t predictor_size = 0;  // width inside the classifier
  double predictor_loss = 0;   // weight of the loss that trains the predictor

  // Rows that become one in a span, by its number.
  int64_t rate(int64_t span) const {
    return rates.empty() ? 1 : rates.at(static_cast<size_t>(span));
  }
  // Columns of its rows, with `around` columns around it.
  int64_t width(int64_t span, int64_t around) const {
    return widths.empty() ? around : widths.at(static_cast<size_t>(span));
  }
  // Whether rows stay merged: nothing comes back to those in front of a span.
  bool merges() const { return kind == Kind::patch_merging; }
};

// Where a span is in the pattern.
struct SpanPlace {
  int64_t span = 0;       // its number in pattern order
  int64_t stride = 1;     // the product of the rates of the spans around it
  int64_t width = 0;      // columns of its rows; 0: those of the rows around it
  Norm::Style norm = {};  // of the model
};

constexpr float kScoreNormEpsilon = 1e-5f;

// Of normalised rows: scores of unit size.
inline Initializer score_initializer(const SubsampleConfig& config, int64_t hidden_size,
                                     double initializer_range) {
  return initializers::normal(config.score_norm ? 1 / std::sqrt(static_cast<double>(hidden_size))
                                                : initializer_range);
}

struct SpanChoice {
  // [rows, 1], by which the rows were chosen: in inference those enter that have one above 0.
  // Undefined if there are no rows.
  Tensor scores;
  RowSelection selection;
  Tensor weights;  // of what the span makes of each row that enters [selected, 1]
  // [rows, hidden_size], the rows of which enter in place of those in front of the span; undefined:
  // these themselves.
  Tensor pooled = {};
};

// Linear from `first` at step 0 to `last` at step `steps`.
inline double scheduled(double first, double last, int64_t step, int64_t steps) {
  if (step >= steps) return last;
  return first + (last - first) * static_cast<double>(step) / static_cast<double>(steps);
}

constexpr float kBypassScale = 0.5f;  // initial

// A bypass scale [hidden_size]; under a step of training limited to [c, 1], c falling from 0.9 to
// 0.2, so that early training cannot pass the span by (Zipformer, arXiv 2310.11230; SUBLLM).
inline Tensor limited_bypass_scale(const Context& context, const Tensor& scale, int64_t steps) {
  constexpr double kFirstLimit = 0.9, kLastLimit = 0.2;
  if (!context.training_step) return scale;
  const double least = scheduled(kFirstLimit, kLastLimit, *context.training_step, steps);
  return limit(context, scale, static_cast<float>(least), 1);
}

}  // namespace pronghorn
