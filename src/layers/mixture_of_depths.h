// DepthRouter: which rows enter a span and how strongly they come back, as a mixture of depths has
// it (arXiv 2404.02258, section 3).
#pragma once

#include <cstdint>

#include "layers/carry.h"
#include "layers/layer.h"
#include "layers/parameters.h"
#include "layers/span_choice.h"
#include "tensor/tape.h"

namespace pronghorn {

class DepthRouter {
 public:
  // span: its number in pattern order.
  DepthRouter(const SubsampleConfig& config, int64_t span, int64_t hidden_size,
              double initializer_range, const ParameterScope& scope);

  // x [rows, hidden_size] of at least one row. With a tape the rows enter that the router scores
  // highest in each segment, else those of which the predictor says so. Hands out the loss of the
  // predictor.
  SpanChoice choose(const LayerInput& input, const Tensor& x) const;

  // What a span adds is not scaled but by the router: ones [hidden_size].
  const Tensor& bypass_scale(const Context&) const { return unit_; }

  // Floating-point operations of a row.
  double cost() const;

 private:
  Tensor predicted(const Context& context, const Tensor& rows) const;

  double keep_, predictor_loss_;
  bool score_norm_;
  Tensor unit_;                 // [hidden_size] ones
  Weight score_;                // [1, hidden_size]
  Weight up_, down_;            // of the classifier [predictor_size, hidden_size],
  Tensor up_bias_, down_bias_;  // [1, predictor_size]; undefined where the router predicts itself
};

}  // namespace pronghorn
