// Options as the attention kernels see them.
#pragma once

#include <cmath>

#include "backend/attention.h"
#include "ops/attention.h"

namespace pronghorn {

inline AttentionShape attention_shape(const AttentionOptions& options) {
  AttentionShape shape;
  shape.heads = options.heads;
  shape.kv_heads = options.kv_heads;
  shape.key_dim = options.head_dim;
  shape.value_dim = options.value_dim > 0 ? options.value_dim : options.head_dim;
  shape.scale =
      options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<float>(options.head_dim));
  shape.soft_cap = options.soft_cap;
  shape.value_in_key = options.value_in_key;
  return shape;
}

}  // namespace pronghorn
