// Tiles of the backward pass: probabilities are recomputed from the saved log-sum-exp.
#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_backward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Scores of one row -> probabilities; those of keys it does not see become 0.
HWY_INLINE void Probabilities(float log_sum_exp, float* HWY_RESTRICT scores) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto shift = hn::Set(d, log_sum_exp);
  for (int64_t j = 0; j < kAttentionTile; j += lanes) {
    hn::StoreU(Exp(d, hn::Sub(hn::LoadU(d, scores + j), shift)), d, scores + j);
  }
}

// grad = p (grad - delta), times the slope of the cap unless that is null
HWY_INLINE void ScoreGradient(float delta, const float* HWY_RESTRICT p,
                              const float* HWY_RESTRICT slope, float* HWY_RESTRICT grad) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto shift = hn::Set(d, delta);
  for (int64_t j = 0; j < kAttentionTile; j += lanes) {
    const auto centred = hn::Sub(hn::LoadU(d, grad + j), shift);
    auto result = hn::Mul(hn::LoadU(d, p + j), centred);
    if (slope != nullptr) result = hn::Mul(result, hn::LoadU(d, slope + j));
    hn::StoreU(result, d, grad + j);
  }
}

HWY_INLINE void WriteGradient(int64_t rows, int64_t dim, const float* values, const Matrix& to,
                              int64_t first_row, int64_t column) {
  if (to.data == nullptr) return;
  for (int64_t i = 0; i < rows; ++i) {
    const float* HWY_RESTRICT from = values + i * dim;
    float* HWY_RESTRICT target = to.data + (first_row + i) * to.stride + column;
    if (to.accumulate) {
      for (int64_t c = 0; c < dim; ++c) target[c] += from[c];
    } else {
      std::copy(from, from + dim, target);
    }
  }
}

// Scratch memory of one task: what belongs to a tile of keys, and to a tile of queries of a head.
struct BackwardTiles {
  explicit BackwardTiles(const AttentionShape& shape)
      : key_size(kAttentionTile * shape.key_dim),
        value_size(kAttentionTile * shape.value_dim),
        memory(static_cast<size_t>(5 * key_size + 3 * value_size + 3 * kScores) * sizeof(float)) {
    float* next = reinterpret_cast<float*>(memory.data());
    const auto take = [&](int64_t count) {
      next += count;
      return next - count;
    };
    keys = take(key_size);
    keys_transposed = take(key_size);
    values_transposed = take(value_size);
    grad_k = take(key_size);
    grad_v = take(value_size);
    q = take(key_size);
    grad_o = take(value_size);
    p = take(kScores);
    grad_scores = take(kScores);
    slope = take(kScores);
    grad_q = take(key_size);
  }

  static_assert(cpu_attention::kQueryTile == kAttentionTile);
  static constexpr int64_t kScores = kAttentionTile * kAttentionTile;
  int64_t key_size, value_size;
  Storage memory;
  float* keys;               // [keys, key_dim], scaled
  float* keys_transposed;    // [key_dim, keys]
  float* values_transposed;  // [value_dim, keys]
  float *grad_k, *grad_v;    // [keys, key_dim], [keys, value_dim]
  float* q;                  // [rows, key_dim], scaled
  float* grad_o;             // [rows, value_dim]
  float *p, *grad_scores;    // [rows, keys]
  float* slope;              // [rows, keys], of the cap
  float* grad_q;             // [rows, key_dim], where the rows do not lie side by side
};

HWY_INLINE void PackKeys(const AttentionShape& shape, const AttentionUnit& unit,
                         const KeyTile& tile, int64_t kv_head, BackwardTiles& t) {
  const float* k = reinterpret_cast<const float*>(tile.keys) + kv_head * shape.key_dim;
  PackRows(tile.count, shape.key_dim, shape.scale, k, unit.key_stride, t.keys);
  PackTransposed(tile.count, shape.key_dim, k, unit.key_stride, t.keys_transposed);
  const float* v = shape.value_in_key
                       ? k
                       : reinterpret_cast<const float*>(tile.values) + kv_head * shape.value_dim;
  const int64_t stride = shape.value_in_key ? unit.key_stride : unit.value_stride;
  PackTransposed(tile.count, shape.value_dim, v, stride, t.values_transposed);
  std::fill_n(t.grad_k, t.key_size, 0.0f);
  std::fill_n(t.grad_v, t.value_size, 0.0f);
}

// Query rows that meet a tile of keys.
struct RowTile {
  int64_t first, count;  // of the unit
  int64_t key;           // index of the tile's first key
  bool masked;
};

// The scores of one row -> its probabilities, and where there is a cap its slope.
HWY_INLINE void RowProbabilities(const AttentionShape& shape, const AttentionUnit& unit,
                                 const KeyTile& tile, const RowTile& rows, int64_t at, int64_t head,
                                 const cpu_attention::BackwardOperands& operands, float* scores,
                                 float* slope) {
  if (shape.soft_cap > 0) CapScores(shape.soft_cap, scores, slope);
  if (rows.masked) {
    MaskRow(unit.visible[rows.first + at], rows.key, tile.count, scores);
  }
  const int64_t row = unit.first_row + rows.first + at;
  const KeyLists& lists = operands.lists;
  if (lists.blocks != nullptr && lists.block < kAttentionTile) {
    MaskUnlisted(cpu_attention::row_list(shape, lists, row, head), lists.block, rows.key, scores);
  }
  Probabilities(operands.log_sum_exp[row * shape.heads + head], scores);
}

// The parts of one head of the rows that meet the tile, side by side.
HWY_INLINE void PackMeeting(const cpu_attention::TileRows& meet, int64_t columns, float factor,
                            const ConstMatrix& from, int64_t row0, int64_t column, float* to) {
  for (int64_t i = 0; i < meet.count; ++i) {
    ScaleInto(columns, factor, from.row(row0 + meet.rows[i]) + column, to + i * columns);
  }
}

// What one head's queries add to the gradients.
void BackwardHead(const AttentionShape& shape, const AttentionUnit& unit, const KeyTile& tile,
                  const RowTile& rows, int64_t head,
                  const cpu_attention::BackwardOperands& operands, BackwardTiles& t) {
  const cpu_attention::TileRows meet(shape, operands.lists, unit, head, rows.first, rows.count,
                                     rows.key);
  if (meet.count == 0) return;
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim;
  const int64_t row0 = unit.first_row + rows.first, count = meet.count;
  PackMeeting(meet, key_dim, shape.scale, operands.q, row0, head * key_dim, t.q);
  PackMeeting(meet, value_dim, 1.0f, operands.grad_o, row0, head * value_dim, t.grad_o);
  SmallMatmul(count, kAttentionTile, key_dim, t.q, key_dim, 1, t.keys_transposed, kAttentionTile,
              t.p, kAttentionTile, false);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = i * kAttentionTile;
    RowProbabilities(shape, unit, tile, rows, meet.rows[i], head, operands, t.p + at, t.slope + at);
  }
  SmallMatmul(tile.count, value_dim, count, t.p, 1, kAttentionTile, t.grad_o, value_dim, t.grad_v,
              value_dim, true);
  SmallMatmul(count, kAttentionTile, value_dim, t.grad_o, value_dim, 1, t.values_transposed,
              kAttentionTile, t.grad_scores, kAttentionTile, false);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = i * kAttentionTile;
    ScoreGradient(operands.delta[(row0 + meet.rows[i]) * shape.heads + head], t.p + at,
                  shape.soft_cap > 0 ? t.slope + at : nullptr, t.grad_scores + at);
  }
  SmallMatmul(tile.count, key_dim, count, t.grad_scores, 1, kAttentionTile, t.q, key_dim, t.grad_k,
              key_dim, true);
  if (operands.grad_q.data == nullptr) return;
  float* grad_q = operands.grad_q.row(row0) + head * key_dim;
  const bool all = count == rows.count;
  SmallMatmul(count, key_dim, tile.count, t.grad_scores, kAttentionTile, 1, t.keys, key_dim,
              all ? grad_q : t.grad_q, all ? operands.grad_q.stride : key_dim, all);
  if (!all) {
    ScatterAddRows(count, meet.rows, key_dim, t.grad_q, grad_q, operands.grad_q.stride);
  }
}

// Hands out the gradients of a tile's keys and values.
HWY_INLINE void WriteKeyGradients(const AttentionShape& shape, const KeyTile& tile, int64_t kv_head,
                                  const cpu_attention::BackwardOperands& operands,
                                  BackwardTiles& t) {
  if (tile.first_row < 0) return;
  if (shape.value_in_key) {
    for (int64_t i = 0; i < tile.count; ++i) {
      float* HWY_RESTRICT to = t.grad_k + i * shape.key_dim;
      const float* HWY_RESTRICT from = t.grad_v + i * shape.value_dim;
      for (int64_t c = 0; c < shape.value_dim; ++c) to[c] += from[c];
    }
  }
  WriteGradient(tile.count, shape.key_dim, t.grad_k, operands.grad_k, tile.first_row,
                kv_head * shape.key_dim);
  WriteGradient(tile.count, shape.value_dim, t.grad_v, operands.grad_v, tile.first_row,
                kv_head * shape.value_dim);
}

void Backward(const AttentionShape& shape, const cpu_attention::BackwardTask& task,
              const cpu_attention::BackwardOperands& operands) {
  constexpr int64_t kRows = cpu_attention::kQueryTile;
  const AttentionUnit& unit = *task.unit;
  const int64_t group = shape.heads / shape.kv_heads;
  BackwardTiles t(shape);
  for (int64_t index = unit.first_tile + task.first_tile; index < unit.end_tile();
       index += task.tile_step) {
    const KeyTile& tile = unit.tile(index);
    const int64_t key = index * kAttentionTile;
    PackKeys(shape, unit, tile, task.kv_head, t);
    for (int64_t first = 0; first < unit.rows; first += kRows) {
      const int64_t count = std::min(kRows, unit.rows - first);
      const cpu_attention::RowsRange range = cpu_attention::rows_range(unit, first, count);
      const bool before = key + tile.count <= range.any.begin && key >= range.any.prefix;
      if (before || key >= range.any.end) continue;
      const RowTile rows{first, count, key, cpu_attention::needs_mask(range, tile, key)};
      for (int64_t head = task.kv_head * group; head < (task.kv_head + 1) * group; ++head) {
        BackwardHead(shape, unit, tile, rows, head, operands, t);
      }
    }
    WriteKeyGradients(shape, tile, task.kv_head, operands, t);
  }
}

void Delta(const AttentionShape& shape, const float* grad_o, const float* o, float* delta) {
  const int64_t dim = shape.value_dim;
  for (int64_t h = 0; h < shape.heads; ++h) {
    delta[h] = DotProduct(grad_o + h * dim, o + h * dim, dim);
  }
}

// In double: a sum over all rows of a batch.
float SinkGradient(const AttentionShape& shape, int64_t head, int64_t rows, float sink,
                   const float* log_sum_exp, const float* delta) {
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = i * shape.heads + head;
    sum -= static_cast<double>(ExpOne(sink - log_sum_exp[at])) * delta[at];
  }
  return static_cast<float>(sum);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(Backward);
HWY_EXPORT(Delta);
HWY_EXPORT(SinkGradient);

void cpu_attention::backward_task(const AttentionShape& shape, const BackwardTask& task,
                                  const BackwardOperands& operands) {
  HWY_DYNAMIC_DISPATCH(Backward)(shape, task, operands);
}

void cpu_attention::backward_delta(const AttentionShape& shape, const float* grad_o, const float* o,
                                   float* delta) {
  HWY_DYNAMIC_DISPATCH(Delta)(shape, grad_o, o, delta);
}

float cpu_attention::sink_gradient(const AttentionShape& shape, int64_t head, int64_t rows,
                                   float sink, const float* log_sum_exp, const float* delta) {
  return HWY_DYNAMIC_DISPATCH(SinkGradient)(shape, head, rows, sink, log_sum_exp, delta);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
