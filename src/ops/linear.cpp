#include "ops/linear.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/linear_maps.h"
#include "ops/operands.h"
#include "ops/pointwise.h"

namespace pronghorn {

namespace {

void check(const Tensor& x, const Weight& weight, const Tensor& bias) {
  require(weight.defined(), "linear", "the weight is undefined");
  require(x.columns() == weight.in(), "linear", "input of width {} for a weight [{}, {}]",
          x.columns(), weight.out(), weight.in());
  require(!bias.defined() || (bias.size() == weight.out() && bias.contiguous()), "linear",
          "bias of shape {} for a weight [{}, {}]", bias.shape(), weight.out(), weight.in());
}

const float* numbers_of(const Tensor& bias) { return bias.defined() ? bias.data() : nullptr; }

void product_backward(const Tensor& x, const Weight& weight, const Tensor& bias, const Tensor& y,
                      Precision precision) {
  if (!y.has_grad()) return;
  const int64_t in = weight.in(), out = weight.out(), rows = x.rows();
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
}

Tensor product(const Context& context, const Tensor& x, const Weight& weight, const Tensor& bias) {
  check(x, weight, bias);
  const Tensor y = Tensor::empty({x.rows(), weight.out()});
  const Precision precision = context.precision;
  backend().matmul().linear_forward(weight, input_matrix(x), x.rows(), numbers_of(bias),
                                    output_matrix(y), precision,
                                    context.tape == nullptr && context.exact);
  if (needs_gradient(context, y, x, weight.trainable(), bias)) {
    context.tape->record([=] { product_backward(x, weight, bias, y, precision); });
  }
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

void linear_maps(const Context& context, const Tensor& x, std::span<const LinearMap> maps,
                 std::span<Tensor> y) {
  require(maps.size() <= kMostMaps && maps.size() == y.size(), "linear",
          "{} products for {} results, at most {}", maps.size(), y.size(), kMostMaps);
  const Tensor none;
  const auto weight_of = [&](size_t i) { return maps[i].weight; };
  const auto bias_of = [&](size_t i) { return maps[i].bias == nullptr ? &none : maps[i].bias; };
  const auto wanted = [&](size_t i) { return weight_of(i) != nullptr && weight_of(i)->defined(); };
  std::array<GroupedProduct, kMostMaps> products;
  size_t count = 0;
  bool adapted = false;
  for (size_t i = 0; i < maps.size(); ++i) {
    y[i] = {};
    if (!wanted(i)) continue;
    check(x, *weight_of(i), *bias_of(i));
    adapted = adapted || weight_of(i)->adapter() != nullptr;
    ++count;
  }
  if (adapted || count < 2) {
    for (size_t i = 0; i < maps.size(); ++i) {
      if (wanted(i)) y[i] = linear(context, x, *weight_of(i), *bias_of(i));
    }
    return;
  }
  count = 0;
  bool recorded = false;
  for (size_t i = 0; i < maps.size(); ++i) {
    if (!wanted(i)) continue;
    y[i] = Tensor::empty({x.rows(), weight_of(i)->out()});
    products[count++] = {weight_of(i), input_matrix(x), x.rows(), numbers_of(*bias_of(i)),
                         output_matrix(y[i])};
    if (needs_gradient(context, y[i], x, weight_of(i)->trainable(), *bias_of(i))) recorded = true;
  }
  const Precision precision = context.precision;
  backend().matmul().grouped_forward(std::span(products).first(count), precision,
                                     context.tape == nullptr && context.exact);
  if (!recorded) return;
  struct Made {
    Weight weight;
    Tensor bias, y;
  };
  std::vector<Made> made;
  for (size_t i = 0; i < maps.size(); ++i) {
    if (wanted(i)) made.push_back({*weight_of(i), *bias_of(i), y[i]});
  }
  // Last to first, as the tape would run them.
  context.tape->record([x, precision, made = std::move(made)] {
    for (size_t i = made.size(); i-- > 0;) {
      product_backward(x, made[i].weight, made[i].bias, made[i].y, precision);
    }
  });
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
