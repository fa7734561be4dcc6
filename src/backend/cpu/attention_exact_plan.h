// How AttentionKernels::forward_exact() is cut.
#pragma once

#include <cstdint>
#include <span>

#include "backend/attention.h"
#include "backend/cpu/attention_tasks.h"
#include "tensor/storage.h"

namespace pronghorn::cpu_attention {

// What forward_exact() does, in two rounds: shares of the keys, then their merging.
struct ExactPlan {
  ExactPlan(const AttentionShape& shape, std::span<const AttentionUnit> units,
            const KeyLists& lists);

  struct Task {  // one unit and key-value head
    const AttentionUnit* unit;
    int64_t kv_head, splits, offset;
  };
  PooledVector<Task> tasks;
  struct Part {
    ExactPart part;
    int64_t task, place;  // of its first head; place: among the task's splits
  };
  PooledVector<Part> parts;
  int64_t size = 0;  // numbers of the partial results
  int64_t work = 0;  // multiply-adds

 private:
  // unit: stays where it is; of one row where lists gather (cpu_attention::gathers).
  void add(const AttentionShape& shape, const AttentionUnit& unit, const KeyLists& lists,
           int64_t most_heads);
  void add_gathered(const AttentionShape& shape, const AttentionUnit& unit, const KeyLists& lists);
};

}  // namespace pronghorn::cpu_attention
