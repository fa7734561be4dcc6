// How AttentionKernels::forward_exact() is cut.
#pragma once

#include <cstdint>

#include "backend/attention.h"
#include "tensor/storage.h"

namespace pronghorn::cpu_attention {

// What forward_exact() does, in two rounds: shares of the keys, then their merging.
struct ExactPlan {
  struct Task {  // one unit and key-value head
    const AttentionUnit* unit;
    int64_t kv_head, splits, offset;
  };
  PooledVector<Task> tasks;
  struct Part {
    int64_t task, place, split;  // place: among the task's splits
  };
  PooledVector<Part> parts;
  int64_t size = 0;  // numbers of the partial results
  int64_t work = 0;  // multiply-adds

  void add(const AttentionShape& shape, const AttentionUnit& unit, const KeyLists& lists);
};

}  // namespace pronghorn::cpu_attention
