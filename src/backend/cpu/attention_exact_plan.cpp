#include "backend/cpu/attention_exact_plan.h"

#include <algorithm>

#include "backend/cpu/attention_tasks.h"

namespace pronghorn::cpu_attention {
namespace {

// Which shares of the keys rows of a unit see something of, as far as lists say, for one key-value
// head: those that lists name are few where the keys are many.
class ListedSplits {
 public:
  ListedSplits(const AttentionShape& shape, const KeyLists& lists, const AttentionUnit& unit,
               int64_t kv_head)
      : all_(lists.blocks == nullptr) {
    if (all_) return;
    const int64_t keys = unit.end_tile() * kAttentionTile;
    const int64_t group = shape.heads / shape.kv_heads, step = shape.heads / lists.lists;
    for (int64_t row = unit.first_row; row < unit.first_row + unit.rows; ++row) {
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head += step) {
        const RowList list = row_list(shape, lists, row, head);
        for (const int32_t* block = list.begin; block != list.end; ++block) {
          add(*block * lists.block, std::min(keys, (*block + 1) * lists.block));
        }
      }
    }
  }

  bool contains(int64_t split) const {
    return all_ || (split < std::ssize(seen_) && seen_[static_cast<size_t>(split)] != 0);
  }

 private:
  void add(int64_t begin, int64_t end) {
    if (begin >= end) return;
    const auto last = static_cast<size_t>((end - 1) / kSplitKeys);
    if (last >= seen_.size()) seen_.resize(last + 1);
    for (auto split = static_cast<size_t>(begin / kSplitKeys); split <= last; ++split) {
      seen_[split] = 1;
    }
  }

  bool all_;
  PooledVector<uint8_t> seen_;
};

}  // namespace

void ExactPlan::add(const AttentionShape& shape, const AttentionUnit& unit, const KeyLists& lists) {
  const SeenTiles seen = seen_tiles(unit);
  const auto first = static_cast<int64_t>(tasks.size());
  for (int64_t i = 0; i < unit.kv_heads; ++i) {
    tasks.push_back({&unit, unit.first_kv_head + i, 0, 0});
  }
  PooledVector<ListedSplits> listed;
  for (int64_t i = 0; i < unit.kv_heads; ++i) {
    listed.emplace_back(shape, lists, unit, unit.first_kv_head + i);
  }
  // The heads of a share one after another: they lie side by side in memory.
  int64_t next = 0;
  for (int64_t key = seen.from(0); key < seen.end; key = next) {
    const int64_t split = key / kSplitKeys;
    next = seen.from((split + 1) * kSplitKeys);
    for (int64_t i = 0; i < unit.kv_heads; ++i) {
      if (!listed[static_cast<size_t>(i)].contains(split)) continue;
      Task& task = tasks[static_cast<size_t>(first + i)];
      parts.push_back({first + i, task.splits++, split});
    }
  }
  for (int64_t i = first; i < std::ssize(tasks); ++i) {
    Task& task = tasks[static_cast<size_t>(i)];
    task.offset = size;
    size += task.splits * partial_size(shape, unit);
  }
  const int64_t heads = unit.kv_heads * (shape.heads / shape.kv_heads);
  int64_t keys = seen.prefix_end + seen.end - seen.begin;
  if (lists.blocks != nullptr) {
    // All heads of a group meet what one of their lists has; and reading here and there is slow.
    constexpr int64_t kScattered = 2;
    const int64_t of_group = std::max<int64_t>(1, lists.lists / shape.kv_heads);
    keys = std::min(keys, kScattered * of_group * lists.width * lists.block);
  }
  work += unit.rows * heads * keys * ((shape.key_dim + shape.value_dim) / 2);
}

}  // namespace pronghorn::cpu_attention
