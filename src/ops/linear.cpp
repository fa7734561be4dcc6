#include "ops/linear.h"

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"

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
  backend().matmul().linear_forward(weight, input_matrix(x), rows,
                                    bias.defined() ? bias.data() : nullptr, output_matrix(y),
                                    precision, context.tape == nullptr && context.exact);
  if (!needs_gradient(context, y, x, weight.trainable(), bias)) return y;

  context.tape->record([x, weight, bias, y, precision, rows, in, out] {
    if (!y.has_grad()) return;
    MatmulKernels& kernels = backend().matmul();
    const ConstMatrix dy = output_gradient(y);
    if (x.requires_grad()) {
      kernels.linear_backward_input(weight, dy, rows, input_gradient(x), precision);
    }
    if (weight.trainable().requires_grad()) {
      kernels.linear_backward_weight(dy, input_matrix(x), rows, out, in,
                                     input_gradient(weight.trainable()), precision);
    }
    if (bias.requires_grad()) {
      kernels.linear_backward_bias(dy, rows, out, vector_gradient(bias));
    }
  });
  return y;
}

}  // namespace pronghorn
