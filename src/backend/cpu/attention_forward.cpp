// Tiles of the forward pass: long segments.
#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_forward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {

void PackTile(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head, int64_t tile,
              const cpu_attention::PackedKeys& packed) {
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim;
  const KeyTile& from = unit.tile(tile);
  const int64_t rows = from.count;
  float* keys = packed.data + packed.place(tile) * cpu_attention::packed_tile_size(shape);
  float* values = keys + kAttentionTile * key_dim;
  const Storage scratch(
      unit.type == DType::f32 ? 1 : static_cast<size_t>(kAttentionTile * key_dim) * sizeof(float));
  const ConstMatrix k = FloatRows(unit.type, from.keys, kv_head * key_dim, unit.key_stride, rows,
                                  key_dim, reinterpret_cast<float*>(scratch.data()));
  PackTransposed(rows, key_dim, k.data, k.stride, keys);
  const ConstMatrix v = shape.value_in_key ? k
                                           : FloatRows(unit.type, from.values, kv_head * value_dim,
                                                       unit.value_stride, rows, value_dim, values);
  if (v.data != values) PackRows(rows, value_dim, 1.0f, v.data, v.stride, values);
  std::fill(values + rows * value_dim, values + kAttentionTile * value_dim, 0.0f);
}

// Writes out what ForwardTile() has added up for one row and head.
HWY_INLINE void FinishRow(const AttentionShape& shape, int64_t row, int64_t head, float maximum,
                          float sum, const float* o, const AttentionOperands& operands) {
  const int64_t dim = shape.value_dim;
  ScaleInto(dim, sum > 0 ? 1 / sum : 0.0f, o, operands.o.row(row) + head * dim);
  if (operands.log_sum_exp == nullptr) return;
  operands.log_sum_exp[row * shape.heads + head] = sum > 0 ? maximum + LogOne(sum) : 0.0f;
}

void ForwardTile(const AttentionShape& shape, const AttentionUnit& unit, int64_t head,
                 int64_t first, int64_t count, const cpu_attention::PackedKeys& packed,
                 const AttentionOperands& operands) {
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim;
  constexpr int64_t kRows = cpu_attention::kQueryTile;
  const Storage scratch(static_cast<size_t>(kRows * (key_dim + value_dim + kAttentionTile)) *
                        sizeof(float));
  float* q = reinterpret_cast<float*>(scratch.data());
  float* o = q + kRows * key_dim;
  float* scores = o + kRows * value_dim;
  // A sink is a key whose value is 0.
  float maximum[kRows], sum[kRows];
  const float* sink = operands.sinks == nullptr ? nullptr : operands.sinks + head;
  std::fill_n(maximum, count, sink == nullptr ? kMinusInfinity : *sink);
  std::fill_n(sum, count, sink == nullptr ? 0.0f : 1.0f);
  std::fill_n(o, count * value_dim, 0.0f);
  const int64_t row0 = unit.first_row + first;
  PackRows(count, key_dim, shape.scale, operands.q.row(row0) + head * key_dim, operands.q.stride,
           q);

  const cpu_attention::RowsRange range = cpu_attention::rows_range(unit, first, count);
  const cpu_attention::SeenTiles seen(unit, range.any);
  for (int64_t key = seen.from(0); key < seen.end; key = seen.from(key + kAttentionTile)) {
    const KeyTile& tile = cpu_attention::tile_at(unit, key);
    const int64_t width = std::min<int64_t>(tile.count, range.any.end - key);
    const float* keys =
        packed.data + packed.place(key / kAttentionTile) * cpu_attention::packed_tile_size(shape);
    const float* values = keys + kAttentionTile * key_dim;
    SmallMatmul(count, kAttentionTile, key_dim, q, key_dim, 1, keys, kAttentionTile, scores,
                kAttentionTile, false);
    const bool masked = cpu_attention::needs_mask(range, tile, key);
    for (int64_t i = 0; i < count; ++i) {
      float* row = scores + i * kAttentionTile;
      if (shape.soft_cap > 0) CapScores(shape.soft_cap, row, nullptr);
      if (masked) MaskRow(unit.visible[first + i], unit.prefix, key, tile.count, row);
      const float factor = OnlineSoftmaxRow(row, maximum[i], sum[i]);
      if (factor != 1) ScaleBy(value_dim, factor, o + i * value_dim);
    }
    SmallMatmul(count, value_dim, width, scores, kAttentionTile, 1, values, value_dim, o, value_dim,
                true);
  }
  for (int64_t i = 0; i < count; ++i) {
    FinishRow(shape, row0 + i, head, maximum[i], sum[i], o + i * value_dim, operands);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(PackTile);
HWY_EXPORT(ForwardTile);

void cpu_attention::pack_tile(const AttentionShape& shape, const AttentionUnit& unit,
                              int64_t kv_head, int64_t tile, const PackedKeys& packed) {
  HWY_DYNAMIC_DISPATCH(PackTile)(shape, unit, kv_head, tile, packed);
}

void cpu_attention::forward_tile(const AttentionShape& shape, const AttentionUnit& unit,
                                 int64_t head, int64_t first, int64_t count,
                                 const PackedKeys& packed, const AttentionOperands& operands) {
  HWY_DYNAMIC_DISPATCH(ForwardTile)(shape, unit, head, first, count, packed, operands);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
