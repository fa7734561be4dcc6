// What the kinds of spans that run on a part of the rows have in common (layers/subsample.h): their
// settings, and the choice of the rows that enter.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "layers/parameters.h"
#include "ops/subsample.h"
#include "tensor/tensor.h"

namespace pronghorn {

struct SubsampleConfig {
  enum class Kind { subllm, mixture_of_depths };
  // What decides in inference which rows enter a mixture of depths.
  enum class Predictor { classifier, router };

  Kind kind = Kind::subllm;
  std::vector<double> keep;  // share of the rows that enters, for each span in pattern order
  // The score reads the row divided by its root mean square, so that its size does not depend on
  // how far the residual stream has grown; the papers' scores read the row itself.
  bool score_norm = false;

  // Of SUBLLM. The score shifts the rows to a mean of 0 and has a bias to where the share of
  // positive scores is `keep`. Both are averages over training sequences and not learned from the
  // loss. Without them the balancer estimates that share, as the paper's does.
  bool score_bias = false;
  double balancer_scale = 0.04;  // size of the balancer's push, as a share of the gradient
  int64_t balancer_steps = 0;    // over which the balancer's probability falls from 1 to 0.25
  int64_t bypass_steps = 0;      // over which the bypass scale's lower limit falls from 0.9 to 0.2

  // Of a mixture of depths.
  Predictor predictor = Predictor::classifier;
  int64_t predictor_size = 0;  // width inside the classifier
  double predictor_loss = 0;   // weight of the loss that trains the predictor
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
};

}  // namespace pronghorn
