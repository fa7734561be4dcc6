// Tensors as the kernels see them.
#pragma once

#include "backend/operands.h"
#include "backend/pointwise.h"
#include "tensor/tensor.h"

namespace pronghorn {

inline Extent extent_of(const Tensor& tensor) { return {tensor.rows(), tensor.columns()}; }

// An input; null if the tensor is undefined.
inline ConstMatrix input_matrix(const Tensor& tensor) {
  return tensor.defined() ? ConstMatrix{tensor.data(), tensor.row_stride()} : ConstMatrix{};
}

// A fresh tensor to be overwritten; null if it is undefined.
inline Matrix output_matrix(const Tensor& tensor) {
  return tensor.defined() ? Matrix{tensor.data(), tensor.row_stride(), false} : Matrix{};
}

// The gradient of an operator's output; null if nothing depends on that output.
inline ConstMatrix output_gradient(const Tensor& output) {
  return output.has_grad() ? input_matrix(output.grad()) : ConstMatrix{};
}

// Where a kernel puts the gradient of an operator's input; null if the input is undefined or needs
// none. When one tensor is two inputs of an operator, the second to ask is told to accumulate:
// kernels write in the order in which their gradients are listed.
inline Matrix input_gradient(const Tensor& input) {
  if (!input.defined() || !input.requires_grad()) return {};
  const GradTarget target = input.grad_target();
  return {target.tensor.data(), target.tensor.row_stride(), target.accumulate};
}

// The same for a vector of parameters.
inline GradVector vector_gradient(const Tensor& parameter) {
  const Matrix target = input_gradient(parameter);
  return {target.data, target.accumulate};
}

// What has been added to the gradient of an input so far, in memory of the host, to be changed and
// written back; zeros if nothing has.
inline PooledVector<float> gradient_so_far(const GradTarget& target) {
  if (target.accumulate) return target.tensor.read();
  return PooledVector<float>(static_cast<size_t>(target.tensor.size()));
}

}  // namespace pronghorn
