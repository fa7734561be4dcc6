#include "layers/layer.h"
#include "ops/pointwise.h"

namespace pronghorn {

Norm::Norm(const ParameterScope& scope, Kind kind, int64_t width, float epsilon, bool bias)
    : kind_(kind),
      epsilon_(epsilon),
      weight_(scope.tensor("weight", {width}, initializers::constant(1))) {
  if (kind == Kind::layer_norm && bias) {
    bias_ = scope.tensor("bias", {width}, initializers::constant(0));
  }
}

Tensor Norm::forward(const Context& context, const Tensor& x) const {
  if (kind_ == Kind::rms_norm) return rms_norm(context, x, weight_, epsilon_);
  return layer_norm(context, x, weight_, bias_, epsilon_);
}

std::pair<Tensor, Tensor> Norm::add_forward(const Context& context, const Tensor& x,
                                            const Tensor& delta) const {
  if (kind_ == Kind::rms_norm) return add_rms_norm(context, x, delta, weight_, epsilon_);
  return add_layer_norm(context, x, delta, weight_, bias_, epsilon_);
}

}  // namespace pronghorn
