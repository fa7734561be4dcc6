#include "layers/layer.h"
#include "ops/pointwise.h"

namespace pronghorn {

Norm::Norm(const ParameterScope& scope, const Style& style, int64_t width, float factor)
    : style_(style), factor_(factor) {
  if (style.kind == Kind::bias_norm) {
    log_scale_ = scope.tensor("log_scale", {1}, initializers::constant(0));
    bias_ = scope.tensor("bias", {width}, initializers::constant(0));
    return;
  }
  weight_ = scope.tensor("weight", {width}, initializers::constant(1));
  if (style.kind == Kind::layer_norm && style.bias) {
    bias_ = scope.tensor("bias", {width}, initializers::constant(0));
  }
}

Tensor Norm::times_factor(const Context& context, Tensor normalised) const {
  return factor_ == 1 ? normalised : scale(context, normalised, factor_);
}

Tensor Norm::forward(const Context& context, const Tensor& x) const {
  const auto normalised = [&] {
    switch (style_.kind) {
      case Kind::layer_norm:
        return layer_norm(context, x, weight_, bias_, style_.epsilon);
      case Kind::bias_norm:
        return bias_norm(context, x, log_scale_, bias_, style_.epsilon);
      case Kind::rms_norm:
        break;
    }
    return rms_norm(context, x, weight_, style_.epsilon);
  };
  return times_factor(context, normalised());
}

std::pair<Tensor, Tensor> Norm::add_forward(const Context& context, const Tensor& x,
                                            const Tensor& delta) const {
  const auto normalised = [&] {
    switch (style_.kind) {
      case Kind::layer_norm:
        return add_layer_norm(context, x, delta, weight_, bias_, style_.epsilon);
      case Kind::bias_norm:
        return add_bias_norm(context, x, delta, log_scale_, bias_, style_.epsilon);
      case Kind::rms_norm:
        break;
    }
    return add_rms_norm(context, x, delta, weight_, style_.epsilon);
  };
  std::pair<Tensor, Tensor> both = normalised();
  both.second = times_factor(context, std::move(both.second));
  return both;
}

}  // namespace pronghorn
