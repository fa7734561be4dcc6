// Tensors as the kernels see them.
#pragma once

#include "backend/pointwise.h"
#include "tensor/tensor.h"

namespace pronghorn {

inline Extent extent_of(const Tensor& tensor) { return {tensor.rows(), tensor.columns()}; }

inline ConstRows rows_of(const Tensor& tensor) { return {tensor.data(), tensor.row_stride()}; }

// The gradient of an operator's output, null if nothing depends on that output.
inline ConstRows output_gradient(const Tensor& output) {
  return output.has_grad() ? rows_of(output.grad()) : ConstRows{};
}

// A fresh tensor to be overwritten.
inline Rows writable_rows(const Tensor& tensor) {
  return {tensor.data(), tensor.row_stride(), false};
}

// Where a kernel puts the gradient of an operator's input; null if it needs none. When one tensor
// is two inputs of an operator, the second to ask is told to accumulate: kernels write in the order
// in which their gradients are listed.
inline Rows gradient_rows(const Tensor& input) {
  if (!input.requires_grad()) return {};
  const GradTarget target = input.grad_target();
  return {target.tensor.data(), target.tensor.row_stride(), target.accumulate};
}

// The same for a vector of parameters.
inline ColumnGradient gradient_columns(const Tensor& parameter) {
  if (!parameter.requires_grad()) return {};
  const GradTarget target = parameter.grad_target();
  return {target.tensor.data(), target.accumulate};
}

}  // namespace pronghorn
