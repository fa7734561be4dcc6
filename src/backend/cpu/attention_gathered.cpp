// Steps whose rows see single keys of a list: these are gathered and attended to side by side, so
// that what a row costs does not grow with the keys that it does not see.
//
// A row's keys are walked by their places in its list, in tiles and shares of fixed lengths, so its
// bits depend on its query and on the keys and values of its list alone.
#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_gathered.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/attention_scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Copies the columns of one head of up to a tile of keys, in f32. Blocks stay turned.
struct GatheredRows {
  int64_t column, columns;
  bool values;

  const std::byte* address(const AttentionUnit& unit, int64_t key) const {
    const KeyTile& tile = cpu_attention::tile_at(unit, key);
    const int64_t stride = values ? unit.value_stride : unit.key_stride;
    return (values ? tile.values : tile.keys) +
           dtype_bytes(unit.type, key % kAttentionTile * stride);
  }

  void copy(const AttentionUnit& unit, int64_t count, const int32_t* keys, float* to) const {
    constexpr int64_t kAhead = 6;  // rows lie anywhere: they are sent for before they are needed
    constexpr int64_t kCacheLine = 64;
    const int64_t offset = dtype_bytes(unit.type, column), bytes = dtype_bytes(unit.type, columns);
    for (int64_t i = 0; i < count; ++i, to += columns) {
      if (i + kAhead < count) {
        const std::byte* next = address(unit, keys[i + kAhead]) + offset;
        for (int64_t b = 0; b < bytes; b += kCacheLine) __builtin_prefetch(next + b, 0, 2);
      }
      const ConstMatrix row =
          FloatRows(unit.type, address(unit, keys[i]), column, 0, 1, columns, to);
      if (row.data != to) std::copy_n(row.data, columns, to);
    }
  }
};

void GatheredSplit(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
                   int64_t split, const AttentionOperands& operands, float* partial) {
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim;
  const int64_t group = shape.heads / shape.kv_heads;
  const Storage memory(static_cast<size_t>(group * (key_dim + kAttentionTile) +
                                           kAttentionTile * (key_dim + value_dim)) *
                       sizeof(float));
  float* q = reinterpret_cast<float*>(memory.data());
  float* scores = q + group * key_dim;
  float* keys = scores + group * kAttentionTile;
  float* values = keys + kAttentionTile * key_dim;
  ScaleInto(group * key_dim, shape.scale,
            operands.q.row(unit.first_row) + kv_head * group * key_dim, q);
  if (is_block_type(unit.type)) TurnBlocks(group * key_dim, q);
  float* maximum = partial;
  float* sum = maximum + group;
  float* o = sum + group;
  std::fill_n(maximum, group, kMinusInfinity);
  std::fill_n(sum, group * (value_dim + 1), 0.0f);

  const KeyRange& seen = unit.visible[0];
  const cpu_attention::RowList list =
      cpu_attention::row_list(shape, operands.lists, unit.first_row, kv_head * group);
  const int32_t* next = list.begin + split * cpu_attention::kSplitPlaces;
  const int32_t* end = std::min(list.end, next + cpu_attention::kSplitPlaces);
  const GatheredRows key_rows{kv_head * key_dim, key_dim, false};
  const GatheredRows value_rows{kv_head * value_dim, value_dim, true};
  while (next < end) {
    int32_t chosen[kAttentionTile];
    int64_t count = 0;
    for (; next < end && count < kAttentionTile; ++next) {
      const bool sees = *next < seen.end && (*next >= seen.begin || *next < seen.prefix);
      if (sees) chosen[count++] = *next;
    }
    if (count == 0) continue;
    key_rows.copy(unit, count, chosen, keys);
    ScoreTile(key_dim, group, q, {keys, key_dim}, count, scores);
    for (int64_t r = 0; r < group; ++r) {
      float* row = scores + r * kAttentionTile;
      if (shape.soft_cap > 0) CapScores(shape.soft_cap, row, nullptr);
      std::fill(row + count, row + kAttentionTile, kMinusInfinity);
      const float factor = OnlineSoftmaxRow(row, maximum[r], sum[r]);
      if (factor != 1) ScaleBy(value_dim, factor, o + r * value_dim);
    }
    if (!shape.value_in_key) value_rows.copy(unit, count, chosen, values);
    SmallMatmul(group, value_dim, count, scores, kAttentionTile, 1,
                shape.value_in_key ? keys : values, shape.value_in_key ? key_dim : value_dim, o,
                value_dim, true);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(GatheredSplit);

void cpu_attention::gathered_split(const AttentionShape& shape, const AttentionUnit& unit,
                                   int64_t kv_head, int64_t split,
                                   const AttentionOperands& operands, float* partial) {
  HWY_DYNAMIC_DISPATCH(GatheredSplit)(shape, unit, kv_head, split, operands, partial);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
