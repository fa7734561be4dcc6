#include "layers/layer.h"
#include "ops/pointwise.h"

namespace pronghorn {

Norm::Norm(const ParameterScope& scope, const Style& style, int64_t width, float factor)
    : style_(style),
      factor_(factor),
      weight_(scope.tensor("weight", {width}, initializers::constant(1))) {
  if (style.kind == Kind::layer_norm && style.bias) {
    bias_ = scope.tensor("bias", {width}, initializers::constant(0));
  }
}

Tensor Norm::times_factor(const Context& context, Tensor normalised) const {
  return factor_ == 1 ? normalised : scale(context, normalised, factor_);
}

Tensor Norm::forward(const Context& context, const Tensor& x) const {
  if (style_.kind == Kind::rms_norm) {
    return times_factor(context, rms_norm(context, x, weight_, style_.epsilon));
  }
  return times_factor(context, layer_norm(context, x, weight_, bias_, style_.epsilon));
}

std::pair<Tensor, Tensor> Norm::add_forward(const Context& context, const Tensor& x,
                                            const Tensor& delta) const {
  std::pair<Tensor, Tensor> both =
      style_.kind == Kind::rms_norm
          ? add_rms_norm(context, x, delta, weight_, style_.epsilon)
          : add_layer_norm(context, x, delta, weight_, bias_, style_.epsilon);
  both.second = times_factor(context, std::move(both.second));
  return both;
}

}  // namespace pronghorn
