// Subsample: the layer around a span of blocks that runs on a part of the rows (SUBLLM, arXiv
// 2406.06571). It scores the rows in front of the span, and joins the span's results behind it.
#pragma once

#include <cstdint>
#include <vector>

#include "layers/parameters.h"
#include "ops/subsample.h"
#include "tensor/batch.h"
#include "tensor/tape.h"

namespace pronghorn {

struct SubsampleConfig {
  // The score reads the row divided by its root mean square, so that its size does not depend on
  // how far the residual stream has grown; the paper's score reads the row itself.
  bool score_norm = false;
  // The score shifts the rows to a mean of 0 and has a bias to where the share of positive scores
  // is `keep`. Both are averages over training sequences and not learned from the loss. Without
  // them the balancer estimates that share, as the paper's does.
  bool score_bias = false;
  std::vector<double> keep;      // share of the rows that enters, for each span in pattern order
  double balancer_scale = 0.04;  // size of the balancer's push, as a share of the gradient
  int64_t balancer_steps = 0;    // over which the balancer's probability falls from 1 to 0.25
  int64_t bypass_steps = 0;      // over which the bypass scale's lower limit falls from 0.9 to 0.2
};

class Subsample {
 public:
  // span: its number in pattern order, which names what a SequenceState keeps of it.
  Subsample(const SubsampleConfig& config, int64_t span, int64_t hidden_size,
            double initializer_range, const ParameterScope& scope);

  // What is known between the two ends of a span.
  struct Span {
    Tensor outer;   // the rows in front of the span [rows, hidden_size]
    Tensor scores;  // [rows, 1]; undefined if there are no rows
    RowSelection selection;
    Tensor weights;      // of the selected rows [selected, 1]
    Tensor inner;        // the selected rows [selected, hidden_size]
    CheckedBatch batch;  // of the selected rows
  };

  // With a tape the highest scores of each segment enter, else those above 0.
  Span enter(const Context& context, const Tensor& x, const CheckedBatch& batch) const;

  // y: what the span made of span.inner. Returns [rows, hidden_size] of the outer batch.
  Tensor leave(const Context& context, const Span& span, const Tensor& y) const;

 private:
  RowSelection select(const Context& context, const Tensor& scores,
                      const CheckedBatch& batch) const;

  int64_t span_;
  double keep_, balancer_scale_;
  int64_t balancer_steps_, bypass_steps_;
  Tensor unit_;          // [hidden_size] ones for the norm; undefined without score_norm
  Weight score_;         // [1, hidden_size]
  Tensor score_shift_;   // [hidden_size], of the rows; undefined without score_bias
  Tensor score_bias_;    // [1]; undefined without score_bias
  Tensor bypass_scale_;  // [hidden_size]
};

}  // namespace pronghorn
