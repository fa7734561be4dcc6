#include "ops/linear.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"
#include "ops/pointwise.h"

namespace pronghorn {

namespace {

Tensor product(const Context& context, const Tensor& x, const Weight& weight, const Tensor& bias) {
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
      linear_input_gradient(weight, dy, rows, input_gradient(x), precision);
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

Tensor product_transposed(const Context& context, const Tensor& x, const Weight& weight) {
  const int64_t in = weight.in(), out = weight.out(), rows = x.rows();
  require(x.columns() == out, "linear_transposed", "input of width {} for a weight [{}, {}]",
          x.columns(), out, in);
  const Tensor y = Tensor::empty({rows, in});
  const Precision precision = context.precision;
  linear_input_gradient(weight, input_matrix(x), rows, output_matrix(y), precision);
  if (!needs_gradient(context, y, x, weight.trainable())) return y;

  context.tape->record([x, weight, y, precision, rows, in, out] {
    if (!y.has_grad()) return;
    MatmulKernels& kernels = backend().matmul();
    const ConstMatrix dy = output_gradient(y);
    if (x.requires_grad()) {
      kernels.linear_forward(weight, dy, rows, nullptr, input_gradient(x), precision, false);
    }
    if (weight.trainable().requires_grad()) {
      kernels.linear_backward_weight(input_matrix(x), dy, rows, out, in,
                                     input_gradient(weight.trainable()), precision);
    }
  });
  return y;
}

}  // namespace

Tensor linear(const Context& context, const Tensor& x, const Weight& weight, const Tensor& bias) {
  const Tensor y = product(context, x, weight, bias);
  const LowRank* change = weight.adapter().get();
  if (change == nullptr) return y;
  const Tensor low = product(context, x, change->a, {});
  return add(context, y, scale(context, product(context, low, change->b, {}), change->scale));
}

Tensor linear_transposed(const Context& context, const Tensor& x, const Weight& weight) {
  const Tensor y = product_transposed(context, x, weight);
  const LowRank* change = weight.adapter().get();
  if (change == nullptr) return y;
  const Tensor low = product_transposed(context, x, change->b);
  return add(context, y,
             scale(context, product_transposed(context, low, change->a), change->scale));
}

void linear_input_gradient(const Weight& weight, ConstMatrix dy, int64_t rows, Matrix dx,
                           Precision precision) {
  MatmulKernels& kernels = backend().matmul();
  if (weight.trainable().defined() || rows == 0) {
    return kernels.linear_backward_input(weight, dy, rows, dx, precision);
  }
  // A read-only weight has no packed copy for this side: some of its rows at a time have.
  constexpr int64_t kNumbers = 1 << 20;
  const int64_t in = weight.in(), out = weight.out();
  const int64_t step = std::min(out, std::max<int64_t>(16, kNumbers / std::max<int64_t>(1, in)));
  std::vector<int32_t> places(static_cast<size_t>(step));
  for (int64_t first = 0; first < out; first += step) {
    const int64_t count = std::min(step, out - first);
    std::iota(places.begin(), places.end(), static_cast<int32_t>(first));
    const Tensor some = Tensor::empty({count, in});
    kernels.read_rows(weight, std::span(places).first(static_cast<size_t>(count)),
                      output_matrix(some));
    kernels.linear_backward_input(Weight(some), {dy.data + first, dy.stride}, rows, dx, precision);
    dx.accumulate = true;
  }
}

}  // namespace pronghorn
