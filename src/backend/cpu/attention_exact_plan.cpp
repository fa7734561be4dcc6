#include "backend/cpu/attention_exact_plan.h"

#include <algorithm>

#include "base/threads.h"

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

// Key-value heads of a part: what several read of a row lies side by side, and memory is read
// faster so; but there are to be parts for all threads, and a tile is to stay in the second cache.
int64_t heads_of_part(const AttentionShape& shape, std::span<const AttentionUnit> units,
                      const KeyLists& lists) {
  if (lists.blocks != nullptr) return 1;
  constexpr int64_t kPartsOfThread = 2, kTileBytes = 1 << 17;
  int64_t parts = 0, row_bytes = 1;  // parts: of one head
  for (const AttentionUnit& unit : units) {
    const SeenTiles seen = seen_tiles(unit);
    const int64_t keys = seen.prefix_end + std::max<int64_t>(0, seen.end - seen.begin);
    parts += unit.kv_heads * ((keys + kSplitKeys - 1) / kSplitKeys);
    row_bytes = std::max(row_bytes, dtype_bytes(unit.type, shape.key_dim + shape.value_dim));
  }
  return std::clamp<int64_t>(parts / (kPartsOfThread * thread_count()), 1,
                             std::max<int64_t>(1, kTileBytes / kAttentionTile / row_bytes));
}

}  // namespace

void ExactPlan::add_gathered(const AttentionShape& shape, const AttentionUnit& unit,
                             const KeyLists& lists) {
  const int64_t group = shape.heads / shape.kv_heads;
  for (int64_t kv_head = unit.first_kv_head; kv_head < unit.first_kv_head + unit.kv_heads;
       ++kv_head) {
    const RowList list = row_list(shape, lists, unit.first_row, kv_head * group);
    const int64_t count = list.end - list.begin;
    const int64_t splits = (count + kSplitPlaces - 1) / kSplitPlaces;
    for (int64_t split = 0; split < splits; ++split) {
      parts.push_back({{&unit, kv_head, 1, split, 0}, std::ssize(tasks), split});
    }
    tasks.push_back({&unit, kv_head, splits, size});
    size += splits * partial_size(shape, unit);
    work += group * count * (shape.key_dim + shape.value_dim);
  }
}

ExactPlan::ExactPlan(const AttentionShape& shape, std::span<const AttentionUnit> units,
                     const KeyLists& lists) {
  const int64_t most_heads = heads_of_part(shape, units, lists);
  for (const AttentionUnit& unit : units) add(shape, unit, lists, most_heads);
}

void ExactPlan::add(const AttentionShape& shape, const AttentionUnit& unit, const KeyLists& lists,
                    int64_t most_heads) {
  if (gathers(shape, lists)) return add_gathered(shape, unit, lists);
  const SeenTiles seen = seen_tiles(unit);
  const auto first = static_cast<int64_t>(tasks.size());
  for (int64_t i = 0; i < unit.kv_heads; ++i) {
    tasks.push_back({&unit, unit.first_kv_head + i, 0, 0});
  }
  PooledVector<ListedSplits> listed;
  for (int64_t i = 0; i < unit.kv_heads; ++i) {
    listed.emplace_back(shape, lists, unit, unit.first_kv_head + i);
  }
  int64_t next = 0;
  for (int64_t key = seen.from(0); key < seen.end; key = next) {
    const int64_t split = key / kSplitKeys;
    next = seen.from((split + 1) * kSplitKeys);
    for (int64_t i = 0, heads = 0; i < unit.kv_heads; i += heads) {
      heads = std::min(most_heads, unit.kv_heads - i);
      if (!listed[static_cast<size_t>(i)].contains(split)) continue;
      const int64_t place = tasks[static_cast<size_t>(first + i)].splits;
      for (int64_t j = i; j < i + heads; ++j) ++tasks[static_cast<size_t>(first + j)].splits;
      parts.push_back({{&unit, unit.first_kv_head + i, heads, split, key}, first + i, place});
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
