#include <utility>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

// Throws Error unless the operands of a norm of h = x + delta fit; delta may be undefined.
void check_operands(const char* where, const Tensor& x, const Tensor& delta, const Tensor& bias) {
  require(!bias.defined() || bias.size() == x.columns(), where, "bias of {} for {} columns",
          bias.size(), x.columns());
  require(!delta.defined() || delta.shape() == x.shape(), where, "shapes {} and {} differ",
          x.shape(), delta.shape());
}

// The gradient of h = x + delta, given by both of its uses, goes to both.
void give_sum_gradient(const Tensor& x, const Tensor& delta, const Tensor& dh) {
  if (!dh.defined()) return;
  if (x.requires_grad()) x.give_grad(dh);
  if (delta.requires_grad()) delta.give_grad(dh);
}

// What rms_norm and layer_norm of pointwise.h have in common: h = x + delta (delta may be
// undefined: h = x), and the norm of h. Returns {h, norm}.
std::pair<Tensor, Tensor> residual_norm(const Context& context, const char* where, const Tensor& x,
                                        const Tensor& delta, const Tensor& weight,
                                        const Tensor& bias, float epsilon, bool centered) {
  require(weight.size() == x.columns(), where, "weight of {} for {} columns", weight.size(),
          x.columns());
  check_operands(where, x, delta, bias);
  Tensor y = Tensor::empty(x.shape());
  const Tensor h = delta.defined() ? Tensor::empty(x.shape()) : x;
  const bool record = needs_gradient(context, y, x, delta, weight, bias);
  Tensor inverse_rms, mean;
  if (record) {
    inverse_rms = Tensor::empty({x.rows()});
    if (centered) mean = Tensor::empty({x.rows()});
  }

  NormForward forward;
  forward.extent = extent_of(x);
  forward.centered = centered;
  forward.epsilon = epsilon;
  forward.x = input_matrix(x);
  if (delta.defined()) {
    forward.delta = input_matrix(delta);
    forward.sum = output_matrix(h);
  }
  forward.weight = weight.data();
  if (bias.defined()) forward.bias = bias.data();
  forward.y = output_matrix(y);
  if (inverse_rms.defined()) forward.inverse_rms = inverse_rms.data();
  if (mean.defined()) forward.mean = mean.data();
  backend().pointwise().norm(forward);
  if (!record) return {h, y};

  if (delta.defined()) h.set_requires_grad(x.requires_grad() || delta.requires_grad());
  context.tape->record([=] {
    const bool residual = delta.defined();
    Tensor dh;  // of the sum, from both its uses
    if (y.has_grad()) {
      NormBackward backward;
      backward.extent = extent_of(h);
      backward.centered = centered;
      backward.h = input_matrix(h);
      backward.weight = weight.data();
      backward.inverse_rms = inverse_rms.data();
      if (centered) backward.mean = mean.data();
      backward.dy = output_gradient(y);
      if (!residual) {
        backward.dh = input_gradient(x);
      } else if (h.requires_grad()) {
        backward.residual = output_gradient(h);
        dh = Tensor::empty(h.shape());
        backward.dh = output_matrix(dh);
      }
      backward.dweight = vector_gradient(weight);
      if (bias.defined()) backward.dbias = vector_gradient(bias);
      backend().pointwise().norm_backward(backward);
    } else if (residual && h.has_grad()) {
      dh = h.grad();
    }
    give_sum_gradient(x, delta, dh);
  });
  return {h, y};
}

// {h, bias_norm(h)} with h = x + delta; delta may be undefined.
std::pair<Tensor, Tensor> residual_bias_norm(const Context& context, const char* where,
                                             const Tensor& x, const Tensor& delta,
                                             const Tensor& log_scale, const Tensor& bias,
                                             float epsilon) {
  require(log_scale.size() == 1, where, "log_scale of {} numbers", log_scale.size());
  require(bias.defined(), where, "bias is undefined");
  check_operands(where, x, delta, bias);
  const Tensor y = Tensor::empty(x.shape());
  const Tensor h = delta.defined() ? Tensor::empty(x.shape()) : x;
  const bool record = needs_gradient(context, y, x, delta, log_scale, bias);
  const Tensor inverse_rms = record ? Tensor::empty({x.rows()}) : Tensor();

  BiasNormForward forward;
  forward.extent = extent_of(x);
  forward.epsilon = epsilon;
  forward.x = input_matrix(x);
  if (delta.defined()) {
    forward.delta = input_matrix(delta);
    forward.sum = output_matrix(h);
  }
  forward.log_scale = log_scale.data();
  forward.bias = bias.data();
  forward.y = output_matrix(y);
  if (record) forward.inverse_rms = inverse_rms.data();
  backend().pointwise().bias_norm(forward);
  if (!record) return {h, y};

  if (delta.defined()) h.set_requires_grad(x.requires_grad() || delta.requires_grad());
  context.tape->record([=] {
    const bool residual = delta.defined();
    Tensor dh;  // of the sum, from both its uses
    if (y.has_grad()) {
      BiasNormBackward backward;
      backward.extent = extent_of(h);
      backward.h = input_matrix(h);
      backward.log_scale = log_scale.data();
      backward.bias = bias.data();
      backward.inverse_rms = inverse_rms.data();
      backward.dy = output_gradient(y);
      if (!residual) {
        backward.dh = input_gradient(x);
      } else if (h.requires_grad()) {
        backward.residual = output_gradient(h);
        dh = Tensor::empty(h.shape());
        backward.dh = output_matrix(dh);
      }
      backward.dbias = vector_gradient(bias);
      const Tensor of_rows = Tensor::empty({h.rows(), 1});
      backward.dlog_scale = of_rows.data();
      backend().pointwise().bias_norm_backward(backward);
      if (log_scale.requires_grad()) {
        backend().pointwise().column_sums(extent_of(of_rows), input_matrix(of_rows),
                                          vector_gradient(log_scale));
      }
    } else if (residual && h.has_grad()) {
      dh = h.grad();
    }
    give_sum_gradient(x, delta, dh);
  });
  return {h, y};
}

}  // namespace

Tensor rms_norm(const Context& context, const Tensor& x, const Tensor& weight, float epsilon) {
  return residual_norm(context, "rms_norm", x, {}, weight, {}, epsilon, false).second;
}

Tensor layer_norm(const Context& context, const Tensor& x, const Tensor& weight, const Tensor& bias,
                  float epsilon) {
  return residual_norm(context, "layer_norm", x, {}, weight, bias, epsilon, true).second;
}

std::pair<Tensor, Tensor> add_rms_norm(const Context& context, const Tensor& x, const Tensor& delta,
                                       const Tensor& weight, float epsilon) {
  require(delta.defined(), "add_rms_norm", "delta is undefined");
  return residual_norm(context, "add_rms_norm", x, delta, weight, {}, epsilon, false);
}

std::pair<Tensor, Tensor> add_layer_norm(const Context& context, const Tensor& x,
                                         const Tensor& delta, const Tensor& weight,
                                         const Tensor& bias, float epsilon) {
  require(delta.defined(), "add_layer_norm", "delta is undefined");
  return residual_norm(context, "add_layer_norm", x, delta, weight, bias, epsilon, true);
}

Tensor bias_norm(const Context& context, const Tensor& x, const Tensor& log_scale,
                 const Tensor& bias, float epsilon) {
  return residual_bias_norm(context, "bias_norm", x, {}, log_scale, bias, epsilon).second;
}

std::pair<Tensor, Tensor> add_bias_norm(const Context& context, const Tensor& x,
                                        const Tensor& delta, const Tensor& log_scale,
                                        const Tensor& bias, float epsilon) {
  require(delta.defined(), "add_bias_norm", "delta is undefined");
  return residual_bias_norm(context, "add_bias_norm", x, delta, log_scale, bias, epsilon);
}

Tensor gated_rms_norm(const Context& context, const Tensor& x, const Tensor& z,
                      const Tensor& weight, int64_t group, float epsilon, GateOrder order) {
  require(x.shape() == z.shape(), "gated_rms_norm", "shapes {} and {} differ", x.shape(),
          z.shape());
  require(group > 0 && x.columns() % group == 0, "gated_rms_norm", "{} columns in groups of {}",
          x.columns(), group);
  require(weight.size() == x.columns() || weight.size() == group, "gated_rms_norm",
          "weight of {} for {} columns in groups of {}", weight.size(), x.columns(), group);
  const auto arguments = [=] {
    GatedNorm norm;
    norm.extent = extent_of(x);
    norm.group = group;
    norm.epsilon = epsilon;
    norm.gate_first = order == GateOrder::gate_then_norm;
    norm.x = input_matrix(x);
    norm.z = input_matrix(z);
    norm.weight = weight.data();
    norm.weight_per_group = weight.size() == group;
    return norm;
  };
  Tensor y = Tensor::empty(x.shape());
  const bool record = needs_gradient(context, y, x, z, weight);
  const Tensor inverse_rms = record ? Tensor::empty({x.rows(), x.columns() / group}) : Tensor();
  backend().pointwise().gated_norm(arguments(), output_matrix(y),
                                   record ? inverse_rms.data() : nullptr);
  if (record) {
    context.tape->record([=] {
      if (!y.has_grad()) return;
      const Matrix dx = input_gradient(x), dz = input_gradient(z);
      backend().pointwise().gated_norm_backward(arguments(), inverse_rms.data(), output_gradient(y),
                                                dx, dz, vector_gradient(weight));
    });
  }
  return y;
}

Tensor l2_normalize(const Context& context, const Tensor& x, int64_t group, float epsilon) {
  require(group > 0 && x.columns() % group == 0, "l2_normalize", "{} columns in groups of {}",
          x.columns(), group);
  Tensor y = Tensor::empty(x.shape());
  backend().pointwise().l2_normalize(extent_of(x), group, epsilon, input_matrix(x),
                                     output_matrix(y));
  if (needs_gradient(context, y, x)) {
    context.tape->record([=] {
      if (!y.has_grad()) return;
      backend().pointwise().l2_normalize_backward(extent_of(x), group, epsilon, input_matrix(x),
                                                  output_gradient(y), input_gradient(x));
    });
  }
  return y;
}

}  // namespace pronghorn
