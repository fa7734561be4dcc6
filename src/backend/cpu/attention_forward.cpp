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
namespace {

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
HWY_INLINE void FinishRow(const AttentionShape& shape, DType type, int64_t row, int64_t head,
                          float maximum, float sum, const float* o,
                          const AttentionOperands& operands) {
  const int64_t dim = shape.value_dim;
  float* to = operands.o.row(row) + head * dim;
  ScaleInto(dim, sum > 0 ? 1 / sum : 0.0f, o, to);
  if (is_block_type(type)) TurnBlocks(dim, to);
  if (operands.log_sum_exp == nullptr) return;
  operands.log_sum_exp[row * shape.heads + head] = sum > 0 ? maximum + LogOne(sum) : 0.0f;
}

// Scratch memory of one task: a tile of queries of a head, and the rows of it that meet a tile of
// keys where these are not all.
struct ForwardTiles {
  ForwardTiles(const AttentionShape& shape, int64_t rows, bool lists, bool prefix)
      : count(rows),
        memory(static_cast<size_t>(kRows * ((2 + prefix) * shape.key_dim + 2 * shape.value_dim +
                                            (1 + prefix) * kAttentionTile)) *
               sizeof(float)) {
    float* next = reinterpret_cast<float*>(memory.data());
    const auto take = [&](int64_t columns) {
      next += kRows * columns;
      return next - kRows * columns;
    };
    q = take(shape.key_dim);
    o = take(shape.value_dim);
    scores = take(kAttentionTile);
    if (lists) {
      some_q = take(shape.key_dim);
      some_o = take(shape.value_dim);
    }
    if (!prefix) return;
    prefix_q = take(shape.key_dim);
    prefix_scores = take(kAttentionTile);
  }

  static constexpr int64_t kRows = cpu_attention::kQueryTile;
  int64_t count;  // queries
  Storage memory;
  float *q, *o, *scores;
  float *some_q = nullptr, *some_o = nullptr;
  float *prefix_q = nullptr, *prefix_scores = nullptr;
  float maximum[kRows], sum[kRows];
};

// What rows of a tile of queries take from one tile of keys.
struct KeyStep {
  const cpu_attention::TileRows& rows;  // that meet it
  int64_t key;                          // index of its first key
  int64_t width;                        // keys that somebody sees
  int64_t prefix;                       // first keys that somebody sees beside a range
  const float *keys, *values;
  bool masked;
};

void ForwardStep(const AttentionShape& shape, const AttentionUnit& unit, int64_t head,
                 int64_t first, bool all, const KeyStep& step, const AttentionOperands& operands,
                 ForwardTiles& t) {
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim, count = step.rows.count;
  const KeyLists& lists = operands.lists;
  if (!all) GatherRows(count, step.rows.rows, key_dim, t.q, t.some_q);
  SmallMatmul(count, kAttentionTile, key_dim, all ? t.q : t.some_q, key_dim, 1, step.keys,
              kAttentionTile, t.scores, kAttentionTile, false);
  const bool prefix = t.prefix_q != nullptr && step.key < step.prefix;
  if (prefix) {
    SmallMatmul(t.count, kAttentionTile, key_dim, t.prefix_q, key_dim, 1, step.keys, kAttentionTile,
                t.prefix_scores, kAttentionTile, false);
  }
  const bool parts = lists.blocks != nullptr && lists.block < kAttentionTile;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = step.rows.rows[i], row = unit.first_row + first + at;
    float* scores = t.scores + i * kAttentionTile;
    if (prefix)
      TakePrefix(unit.visible[first + at].prefix, step.key, t.prefix_scores + at * kAttentionTile,
                 scores);
    if (shape.soft_cap > 0) CapScores(shape.soft_cap, scores, nullptr);
    if (step.masked) {
      MaskRow(unit.visible[first + at], step.key, cpu_attention::tile_at(unit, step.key).count,
              scores);
    }
    if (parts) {
      MaskUnlisted(cpu_attention::row_list(shape, lists, row, head), lists.block, step.key, scores);
    }
    const float factor = OnlineSoftmaxRow(scores, t.maximum[at], t.sum[at]);
    if (factor != 1) ScaleBy(value_dim, factor, t.o + at * value_dim);
  }
  SmallMatmul(count, value_dim, step.width, t.scores, kAttentionTile, 1, step.values, value_dim,
              all ? t.o : t.some_o, value_dim, all);
  if (!all) ScatterAddRows(count, step.rows.rows, value_dim, t.some_o, t.o, value_dim);
}

void ForwardTile(const AttentionShape& shape, const AttentionUnit& unit, int64_t head,
                 int64_t first, int64_t count, const cpu_attention::PackedKeys& packed,
                 const AttentionOperands& operands) {
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim;
  const cpu_attention::RowsRange range = cpu_attention::rows_range(unit, first, count);
  const bool rolls = operands.prefix_q.data != nullptr && range.any.prefix > 0;
  ForwardTiles t(shape, count, operands.lists.blocks != nullptr, rolls);
  // A sink is a key whose value is 0.
  const float* sink = operands.sinks == nullptr ? nullptr : operands.sinks + head;
  std::fill_n(t.maximum, count, sink == nullptr ? kMinusInfinity : *sink);
  std::fill_n(t.sum, count, sink == nullptr ? 0.0f : 1.0f);
  std::fill_n(t.o, count * value_dim, 0.0f);
  const int64_t row0 = unit.first_row + first;
  PackRows(count, key_dim, shape.scale, operands.q.row(row0) + head * key_dim, operands.q.stride,
           t.q);
  if (rolls) {
    PackRows(count, key_dim, shape.scale, operands.prefix_q.row(row0) + head * key_dim,
             operands.prefix_q.stride, t.prefix_q);
  }
  if (is_block_type(unit.type)) {
    TurnBlocks(count * key_dim, t.q);
    if (rolls) TurnBlocks(count * key_dim, t.prefix_q);
  }

  const cpu_attention::SeenTiles seen(range.any);
  for (int64_t key = seen.from(0); key < seen.end; key = seen.from(key + kAttentionTile)) {
    const cpu_attention::TileRows rows(shape, operands.lists, unit, head, first, count, key);
    if (rows.count == 0) continue;
    const KeyTile& tile = cpu_attention::tile_at(unit, key);
    const float* keys =
        packed.data + packed.place(key / kAttentionTile) * cpu_attention::packed_tile_size(shape);
    const KeyStep step{.rows = rows,
                       .key = key,
                       .width = std::min<int64_t>(tile.count, range.any.end - key),
                       .prefix = range.any.prefix,
                       .keys = keys,
                       .values = keys + kAttentionTile * key_dim,
                       .masked = cpu_attention::needs_mask(range, tile, key)};
    ForwardStep(shape, unit, head, first, rows.count == count, step, operands, t);
  }
  for (int64_t i = 0; i < count; ++i) {
    FinishRow(shape, unit.type, row0 + i, head, t.maximum[i], t.sum[i], t.o + i * value_dim,
              operands);
  }
}

}  // namespace
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
