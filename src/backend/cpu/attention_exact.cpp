// Steps of few tokens: each row's bits depend on its query and on the keys and values it sees.
//
// A row's keys are walked in tiles at absolute indexes, and every sum of a row runs over fixed
// lanes in a fixed order: rows computed together only share loads. Keys that a row does not see
// weigh exactly 0, which changes no sum.
#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_exact.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/attention_scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {

// Asks for one head's part of `rows` rows, `bytes` long and `stride` bytes apart. They lie apart,
// which hides the stream from the hardware's own prefetching, and often a power of two apart, so
// they are sent for to the second-level cache: the first level would throw most of them out again.
HWY_INLINE void PrefetchRows(int64_t rows, int64_t bytes, const std::byte* from, int64_t stride) {
  constexpr int64_t kCacheLine = 64;
  for (int64_t j = 0; j < rows; ++j) {
    for (int64_t c = 0; c < bytes; c += kCacheLine) __builtin_prefetch(from + j * stride + c, 0, 2);
  }
}

HWY_INLINE void PrefetchKeys(const AttentionShape& shape, const AttentionUnit& unit,
                             int64_t kv_head, const std::byte* keys, int64_t rows) {
  const int64_t size = dtype_size(unit.type);
  PrefetchRows(rows, shape.key_dim * size, keys + kv_head * shape.key_dim * size,
               unit.key_stride * size);
}

HWY_INLINE void PrefetchValues(const AttentionShape& shape, const AttentionUnit& unit,
                               int64_t kv_head, const std::byte* values, int64_t rows) {
  if (shape.value_in_key) return;
  const int64_t size = dtype_size(unit.type);
  PrefetchRows(rows, shape.value_dim * size, values + kv_head * shape.value_dim * size,
               unit.value_stride * size);
}

// Queries of the rows of a unit and the heads of a group, scaled: [rows, group, key_dim].
HWY_INLINE void ScaleQueries(const AttentionShape& shape, const AttentionUnit& unit,
                             int64_t kv_head, const ConstMatrix& from, float* to) {
  const int64_t width = shape.heads / shape.kv_heads * shape.key_dim;
  for (int64_t i = 0; i < unit.rows; ++i) {
    ScaleInto(width, shape.scale, from.row(unit.first_row + i) + kv_head * width, to + i * width);
  }
}

// The first tile at `key` or after it, before `end`, of which some row sees something; end or more:
// none.
HWY_INLINE int64_t NextTile(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
                            const KeyLists& lists, const cpu_attention::SeenTiles& seen,
                            int64_t key, int64_t end) {
  key = seen.from(key);
  while (key < end && !cpu_attention::lists_tile(shape, lists, unit, kv_head, key)) {
    key = seen.from(key + kAttentionTile);
  }
  return key;
}

void ExactSplit(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
                int64_t split, const AttentionOperands& operands, float* partial) {
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t count = unit.rows * group;  // query i * group + h: row i, head h of the group
  // Rows that are not f32 are converted here: the keys of a tile, then its values.
  const int64_t converted =
      unit.type == DType::f32 ? 0 : kAttentionTile * std::max(key_dim, value_dim);
  const cpu_attention::RowsRange range = cpu_attention::rows_range(unit, 0, unit.rows);
  const bool rolls =
      operands.prefix_q.data != nullptr && range.any.prefix > split * cpu_attention::kSplitKeys;
  const Storage memory(
      static_cast<size_t>((1 + rolls) * count * (key_dim + kAttentionTile) + converted) *
      sizeof(float));
  float* q = reinterpret_cast<float*>(memory.data());
  float* scores = q + count * key_dim;
  float* prefix_q = scores + count * kAttentionTile;
  float* prefix_scores = prefix_q + rolls * count * key_dim;
  float* scratch = prefix_scores + rolls * count * kAttentionTile;
  ScaleQueries(shape, unit, kv_head, operands.q, q);
  if (rolls) ScaleQueries(shape, unit, kv_head, operands.prefix_q, prefix_q);
  float* maximum = partial;
  float* sum = maximum + count;
  float* o = sum + count;
  std::fill_n(maximum, count, kMinusInfinity);
  std::fill_n(sum, count * (value_dim + 1), 0.0f);

  const int64_t split_begin = split * cpu_attention::kSplitKeys;
  const int64_t end = std::min(range.any.end, split_begin + cpu_attention::kSplitKeys);
  const cpu_attention::SeenTiles seen(range.any);
  const KeyLists& lists = operands.lists;
  const auto next_tile = [&](int64_t key) {
    return NextTile(shape, unit, kv_head, lists, seen, key, end);
  };
  for (int64_t key = next_tile(split_begin), next = 0; key < end; key = next) {
    next = next_tile(key + kAttentionTile);
    const KeyTile& tile = cpu_attention::tile_at(unit, key);
    const int64_t width = std::min<int64_t>(tile.count, end - key);
    PrefetchValues(shape, unit, kv_head, tile.values, width);
    const ConstMatrix keys = FloatRows(unit.type, tile.keys, kv_head * key_dim, unit.key_stride,
                                       width, key_dim, scratch);
    ScoreTile(key_dim, count, q, keys, width, scores);
    if (next < end) {
      PrefetchKeys(shape, unit, kv_head, cpu_attention::tile_at(unit, next).keys,
                   std::min(kAttentionTile, end - next));
    }
    const bool prefix = rolls && key < range.any.prefix;
    if (prefix) ScoreTile(key_dim, count, prefix_q, keys, width, prefix_scores);
    for (int64_t r = 0; r < count; ++r) {
      float* row = scores + r * kAttentionTile;
      if (prefix)
        TakePrefix(unit.visible[r / group].prefix, key, prefix_scores + r * kAttentionTile, row);
      if (shape.soft_cap > 0) CapScores(shape.soft_cap, row, nullptr);
      MaskRow(unit.visible[r / group], key, tile.count, row);
      if (lists.blocks != nullptr) {
        const cpu_attention::RowList list = cpu_attention::row_list(
            shape, lists, unit.first_row + r / group, kv_head * group + r % group);
        MaskUnlisted(list, lists.block, key, row);
      }
      const float factor = OnlineSoftmaxRow(row, maximum[r], sum[r]);
      if (factor != 1) ScaleBy(value_dim, factor, o + r * value_dim);
    }
    const ConstMatrix values = shape.value_in_key
                                   ? keys
                                   : FloatRows(unit.type, tile.values, kv_head * value_dim,
                                               unit.value_stride, width, value_dim, scratch);
    SmallMatmul(count, value_dim, width, scores, kAttentionTile, 1, values.data, values.stride, o,
                value_dim, true);
  }
}

void ExactMerge(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
                const float* partials, int64_t splits, const AttentionOperands& operands) {
  const int64_t dim = shape.value_dim;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t count = unit.rows * group;
  const int64_t size = cpu_attention::partial_size(shape, unit);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t row = unit.first_row + r / group, head = kv_head * group + r % group;
    float* to = operands.o.row(row) + head * dim;
    std::fill_n(to, dim, 0.0f);
    // A sink is a key whose value is 0.
    float maximum = operands.sinks == nullptr ? kMinusInfinity : operands.sinks[head];
    float sum = operands.sinks == nullptr ? 0.0f : 1.0f;
    for (int64_t s = 0; s < splits; ++s) {
      const float* partial = partials + s * size;
      const float part_maximum = partial[r], part_sum = partial[count + r];
      if (part_sum == 0) continue;  // this row sees nothing there
      const float* part = partial + 2 * count + r * dim;
      const float joint = std::max(maximum, part_maximum);
      const float old_factor = ExpOne(maximum - joint), factor = ExpOne(part_maximum - joint);
      sum = sum * old_factor + part_sum * factor;
      for (int64_t c = 0; c < dim; ++c) to[c] = to[c] * old_factor + part[c] * factor;
      maximum = joint;
    }
    if (sum > 0) ScaleBy(dim, 1 / sum, to);
    if (operands.log_sum_exp == nullptr) continue;
    operands.log_sum_exp[row * shape.heads + head] = sum > 0 ? maximum + LogOne(sum) : 0.0f;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(ExactSplit);
HWY_EXPORT(ExactMerge);

void cpu_attention::exact_split(const AttentionShape& shape, const AttentionUnit& unit,
                                int64_t kv_head, int64_t split, const AttentionOperands& operands,
                                float* partial) {
  HWY_DYNAMIC_DISPATCH(ExactSplit)(shape, unit, kv_head, split, operands, partial);
}

void cpu_attention::exact_merge(const AttentionShape& shape, const AttentionUnit& unit,
                                int64_t kv_head, const float* partials, int64_t splits,
                                const AttentionOperands& operands) {
  HWY_DYNAMIC_DISPATCH(ExactMerge)(shape, unit, kv_head, partials, splits, operands);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
