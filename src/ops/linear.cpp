#include "ops/linear.h"

#include "backend/backend.h"
#include "base/error.h"

namespace pronghorn {

Tensor linear(const Context& context, const Tensor& x, const Weight& weight, const Tensor& bias) {
  require(weight.defined(), "linear", "the weight is undefined");
  const int64_t in = weight.in(), out = weight.out(), rows = x.rows();
  require(x.columns() == in, "linear", "input of width {} for a weight [{}, {}]", x.columns(), out,
          in);
  require(!bias.defined() || (bias.size() == out && bias.contiguous()), "linear",
          "bias of shape {} for a weight [{}, {}]", shape_string(bias.shape()), out, in);

  const Tensor y = Tensor::empty({rows, out});
  const Precision precision = context.precision;
  backend().matmul().linear_forward(weight, x.data(), x.row_stride(), rows,
                                    bias.defined() ? bias.data() : nullptr, y.data(),
                                    y.row_stride(), precision, context.tape == nullptr);
  if (!needs_gradient(context, y, x, weight.value(), bias)) return y;

  context.tape->record([x, weight, bias, y, precision, rows, in, out] {
    if (!y.has_grad()) return;
    MatmulKernels& kernels = backend().matmul();
    const Tensor dy = y.grad();
    if (x.requires_grad()) {
      const GradTarget dx = x.grad_target();
      kernels.linear_backward_input(weight, dy.data(), dy.row_stride(), rows, dx.tensor.data(),
                                    dx.tensor.row_stride(), dx.accumulate, precision);
    }
    if (weight.value().requires_grad()) {
      const GradTarget dw = weight.value().grad_target();
      kernels.linear_backward_weight(dy.data(), dy.row_stride(), x.data(), x.row_stride(), rows,
                                     out, in, dw.tensor.data(), dw.tensor.row_stride(),
                                     dw.accumulate, precision);
    }
    if (bias.requires_grad()) {
      const GradTarget db = bias.grad_target();
      kernels.linear_backward_bias(dy.data(), dy.row_stride(), rows, out, db.tensor.data(),
                                   db.accumulate);
    }
  });
  return y;
}

}  // namespace pronghorn
