#include "ops/gates.h"

#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"
#include "ops/pointwise.h"

namespace pronghorn {

Tensor append_ones(const Context& context, const Tensor& x, int64_t group) {
  require(group > 0 && x.columns() % group == 0, "append_ones", "{} columns in groups of {}",
          x.columns(), group);
  const Tensor y = Tensor::empty({x.rows(), x.columns() / group * (group + 1)});
  backend().pointwise().append_ones(extent_of(x), group, input_matrix(x), output_matrix(y));
  if (needs_gradient(context, y, x)) {
    context.tape->record([=] {
      if (!y.has_grad()) return;
      backend().pointwise().append_ones_backward(extent_of(x), group, output_gradient(y),
                                                 input_gradient(x));
    });
  }
  return y;
}

Tensor divide_by_sums(const Context& context, const Tensor& x, int64_t group, float least) {
  require(group > 0 && x.columns() % (group + 1) == 0, "divide_by_sums",
          "{} columns in groups of {} and a sum", x.columns(), group);
  require(least > 0, "divide_by_sums", "a least sum of {}", least);
  const Tensor y = Tensor::empty({x.rows(), x.columns() / (group + 1) * group});
  backend().pointwise().divide_by_sums(extent_of(y), group, least, input_matrix(x),
                                       output_matrix(y));
  if (needs_gradient(context, y, x)) {
    context.tape->record([=] {
      if (!y.has_grad()) return;
      backend().pointwise().divide_by_sums_backward(extent_of(y), group, least, input_matrix(x),
                                                    output_gradient(y), input_gradient(x));
    });
  }
  return y;
}

Tensor scale_groups(const Context& context, const Tensor& x, const Tensor& factors, int64_t group) {
  require(group > 0 && x.rows() == factors.rows() && x.columns() == factors.columns() * group,
          "scale_groups", "{} factors for {} in groups of {}", factors.shape(), x.shape(), group);
  const Tensor y = Tensor::empty(x.shape());
  backend().pointwise().scale_groups(extent_of(x), group, input_matrix(x), input_matrix(factors),
                                     output_matrix(y));
  if (needs_gradient(context, y, x, factors)) {
    context.tape->record([=] {
      if (!y.has_grad()) return;
      const Matrix dx = input_gradient(x);
      backend().pointwise().scale_groups_backward(extent_of(x), group, input_matrix(x),
                                                  input_matrix(factors), output_gradient(y), dx,
                                                  input_gradient(factors));
    });
  }
  return y;
}

Tensor scale_columns(const Context& context, const Tensor& x, const Tensor& weight) {
  require(weight.size() == x.columns(), "scale_columns", "{} weights for {} columns", weight.size(),
          x.columns());
  const Tensor y = Tensor::empty(x.shape());
  backend().pointwise().scale_columns(extent_of(x), input_matrix(x), weight.data(),
                                      output_matrix(y));
  if (needs_gradient(context, y, x, weight)) {
    context.tape->record([=] {
      if (!y.has_grad()) return;
      const Matrix dx = input_gradient(x);
      backend().pointwise().scale_columns_backward(extent_of(x), input_matrix(x), weight.data(),
                                                   output_gradient(y), dx, vector_gradient(weight));
    });
  }
  return y;
}

std::pair<Tensor, Tensor> lower_bounded_gate(const Context& context, const Tensor& x,
                                             const Tensor& bound) {
  require(bound.size() == x.columns(), "lower_bounded_gate", "{} bounds for {} columns",
          bound.size(), x.columns());
  Tensor log_decay = Tensor::empty(x.shape()), k = Tensor::empty(x.shape());
  backend().pointwise().lower_bounded_gate(extent_of(x), input_matrix(x), bound.data(),
                                           output_matrix(log_decay), output_matrix(k));
  if (needs_gradient(context, log_decay, x, bound)) {
    k.set_requires_grad(true);
    context.tape->record([=] {
      if (!log_decay.has_grad() && !k.has_grad()) return;
      const Matrix dx = input_gradient(x);
      backend().pointwise().lower_bounded_gate_backward(
          extent_of(x), input_matrix(x), bound.data(), output_gradient(log_decay),
          output_gradient(k), dx, vector_gradient(bound));
    });
  }
  return {log_decay, k};
}

Tensor cumulative_softmax(const Context& context, const Tensor& x, int64_t row) {
  require(row >= 0 && row < x.rows(), "cumulative_softmax", "row {} of {}", row, x.rows());
  const Tensor y = Tensor::empty({x.columns()});
  backend().pointwise().cumulative_softmax(extent_of(x), input_matrix(x), row, y.data());
  if (needs_gradient(context, y, x)) {
    context.tape->record([=] {
      if (!y.has_grad()) return;
      backend().pointwise().cumulative_softmax_backward(extent_of(x), input_matrix(x), row,
                                                        y.grad().data(), input_gradient(x));
    });
  }
  return y;
}

Tensor repeat_each(const Context& context, const Tensor& vector, int64_t times) {
  const int64_t size = vector.size();
  std::vector<int32_t> from(static_cast<size_t>(size * times));
  for (size_t i = 0; i < from.size(); ++i) {
    from[i] = static_cast<int32_t>(static_cast<int64_t>(i) / times);
  }
  return embedding(context, vector.reshape({size, 1}), from).reshape({size * times});
}

}  // namespace pronghorn
