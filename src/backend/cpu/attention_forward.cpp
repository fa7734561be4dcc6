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
  const int64_t dim = shape.head_dim;
  const int64_t rows = std::min(kAttentionTile, unit.keys - tile * kAttentionTile);
  float* keys = packed.data + (tile - packed.first_tile) * cpu_attention::packed_tile_size(shape);
  float* values = keys + kAttentionTile * dim;
  PackTransposed(rows, dim, unit.key_tiles[tile] + kv_head * dim, unit.key_stride, keys);
  PackRows(rows, dim, 1.0f, unit.value_tiles[tile] + kv_head * dim, unit.value_stride, values);
  std::fill(values + rows * dim, values + kAttentionTile * dim, 0.0f);
}

void ForwardTile(const AttentionShape& shape, const AttentionUnit& unit, int64_t head,
                 int64_t first, int64_t count, const cpu_attention::PackedKeys& packed,
                 const AttentionOperands& operands) {
  const int64_t dim = shape.head_dim;
  constexpr int64_t kRows = cpu_attention::kQueryTile;
  const Storage scratch(static_cast<size_t>(kRows * (2 * dim + kAttentionTile)) * sizeof(float));
  float* q = reinterpret_cast<float*>(scratch.data());
  float* o = q + kRows * dim;
  float* scores = o + kRows * dim;
  float maximum[kRows], sum[kRows];
  std::fill_n(maximum, count, kMinusInfinity);
  std::fill_n(sum, count, 0.0f);
  std::fill_n(o, count * dim, 0.0f);
  const int64_t row0 = unit.first_row + first;
  PackRows(count, dim, shape.scale, operands.q + row0 * operands.q_stride + head * dim,
           operands.q_stride, q);

  const cpu_attention::RowsRange range = cpu_attention::rows_range(unit, first, count);
  for (int64_t key = range.any.begin / kAttentionTile * kAttentionTile; key < range.any.end;
       key += kAttentionTile) {
    const int64_t tile = key / kAttentionTile;
    const float* keys =
        packed.data + (tile - packed.first_tile) * cpu_attention::packed_tile_size(shape);
    const float* values = keys + kAttentionTile * dim;
    SmallMatmul(count, kAttentionTile, dim, q, dim, 1, keys, kAttentionTile, scores, kAttentionTile,
                false);
    const bool masked = key < range.all.begin || key + kAttentionTile > range.all.end;
    for (int64_t i = 0; i < count; ++i) {
      float* row = scores + i * kAttentionTile;
      if (masked) MaskRow(unit.visible[first + i], key, row);
      const float factor = OnlineSoftmaxRow(row, maximum[i], sum[i]);
      if (factor != 1) ScaleBy(dim, factor, o + i * dim);
    }
    SmallMatmul(count, dim, std::min(kAttentionTile, range.any.end - key), scores, kAttentionTile,
                1, values, dim, o, dim, true);
  }

  const FloatTag d;
  for (int64_t i = 0; i < count; ++i) {
    ScaleInto(dim, sum[i] > 0 ? 1 / sum[i] : 0.0f, o + i * dim,
              operands.o + (row0 + i) * operands.o_stride + head * dim);
    if (operands.log_sum_exp != nullptr) {
      operands.log_sum_exp[(row0 + i) * shape.heads + head] =
          sum[i] > 0 ? maximum[i] + hn::GetLane(Log(d, hn::Set(d, sum[i]))) : 0.0f;
    }
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
