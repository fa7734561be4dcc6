#include "ops/ternary.h"

#include "backend/backend.h"
#include "ops/operands.h"

namespace pronghorn {
namespace {

Tensor straight_through(const Context& context, const Tensor& x, Tensor y) {
  if (needs_gradient(context, y, x)) {
    context.tape->record([x, y] {
      if (y.has_grad()) x.give_grad(y.grad());
    });
  }
  return y;
}

}  // namespace

Tensor round_rows(const Context& context, const Tensor& x) {
  Tensor y = Tensor::empty(x.shape());
  backend().pointwise().round_rows(extent_of(x), input_matrix(x), output_matrix(y));
  return straight_through(context, x, std::move(y));
}

Tensor round_ternary(const Context& context, const Tensor& matrix) {
  Tensor y = Tensor::empty(matrix.shape());
  backend().pointwise().round_ternary(extent_of(matrix), input_matrix(matrix), output_matrix(y));
  return straight_through(context, matrix, std::move(y));
}

}  // namespace pronghorn
