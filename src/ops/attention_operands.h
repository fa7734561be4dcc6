// Tensors and options as the attention kernels see them.
#pragma once

#include <cmath>

#include "backend/attention.h"
#include "ops/attention.h"
#include "tensor/tensor.h"

namespace pronghorn {

inline AttentionShape attention_shape(const AttentionOptions& options) {
  return {options.heads, options.kv_heads, options.head_dim,
          options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<float>(options.head_dim))};
}

// Where a kernel puts the gradient of an input; null if it is undefined or needs none.
inline AttentionGradient attention_gradient(const Tensor& input) {
  if (!input.defined() || !input.requires_grad()) return {};
  const GradTarget target = input.grad_target();
  return {target.tensor.data(), target.tensor.row_stride(), target.accumulate};
}

}  // namespace pronghorn
