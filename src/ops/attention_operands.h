// Tensors and options as the attention kernels see them.
#pragma once

#include <cmath>

#include "backend/attention.h"
#include "ops/attention.h"
#include "ops/operands.h"

namespace pronghorn {

inline AttentionShape attention_shape(const AttentionOptions& options) {
  return {options.heads, options.kv_heads, options.head_dim,
          options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<float>(options.head_dim))};
}

}  // namespace pronghorn
