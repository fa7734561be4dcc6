// SubllmScore: which rows enter a span and how strongly they come back, as SUBLLM has it
// (arXiv 2406.06571, sections 3.1 to 3.3).
#pragma once

#include <cstdint>

#include "layers/layer.h"
#include "layers/parameters.h"
#include "layers/span_choice.h"
#include "tensor/batch.h"
#include "tensor/tape.h"

namespace pronghorn {

class SubllmScore {
 public:
  // span: its number in pattern order.
  SubllmScore(const SubsampleConfig& config, int64_t span, int64_t hidden_size,
              double initializer_range, const ParameterScope& scope);

  // x [rows, hidden_size] of at least one row. With a tape the highest scores of each segment
  // enter, else those above 0.
  SpanChoice choose(const LayerInput& input, const Tensor& x) const;

  // The bypass scale [hidden_size], in training within its limits.
  Tensor bypass_scale(const Context& context) const;

  // Floating-point operations of a row.
  double cost() const { return 2.0 * static_cast<double>(score_.size()); }

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
