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

// Scores of one row -> probabilities; those of keys it does not see become 0.
HWY_INLINE void Probabilities(float log_sum_exp, float* HWY_RESTRICT scores) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto shift = hn::Set(d, log_sum_exp);
  for (int64_t j = 0; j < kAttentionTile; j += lanes) {
    hn::StoreU(Exp(d, hn::Sub(hn::LoadU(d, scores + j), shift)), d, scores + j);
  }
}

// grad = p (grad - delta)
HWY_INLINE void ScoreGradient(float delta, const float* HWY_RESTRICT p, float* HWY_RESTRICT grad) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto shift = hn::Set(d, delta);
  for (int64_t j = 0; j < kAttentionTile; j += lanes) {
    const auto centred = hn::Sub(hn::LoadU(d, grad + j), shift);
    hn::StoreU(hn::Mul(hn::LoadU(d, p + j), centred), d, grad + j);
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

void Backward(const AttentionShape& shape, const cpu_attention::BackwardTask& task,
              const cpu_attention::BackwardOperands& operands) {
  constexpr int64_t kRows = cpu_attention::kQueryTile;
  const AttentionUnit& unit = *task.unit;
  const int64_t dim = shape.head_dim, heads = shape.heads;
  const int64_t group = heads / shape.kv_heads;
  const int64_t tile_size = kAttentionTile * dim;
  const Storage scratch(static_cast<size_t>(7 * tile_size + 2 * kRows * kAttentionTile) *
                        sizeof(float));
  float* keys = reinterpret_cast<float*>(scratch.data());  // scaled, [kAttentionTile, dim]
  float* keys_transposed = keys + tile_size;
  float* values_transposed = keys_transposed + tile_size;
  float* grad_k = values_transposed + tile_size;
  float* grad_v = grad_k + tile_size;
  static_assert(kRows == kAttentionTile);
  float* q = grad_v + tile_size;  // scaled
  float* grad_o = q + tile_size;
  float* p = grad_o + tile_size;
  float* grad_scores = p + kRows * kAttentionTile;

  for (int64_t tile = task.first_tile; tile * kAttentionTile < unit.keys; tile += task.tile_step) {
    const int64_t key = tile * kAttentionTile;
    const int64_t width = std::min(kAttentionTile, unit.keys - key);
    const float* k = unit.key_tiles[tile] + task.kv_head * dim;
    const float* v = unit.value_tiles[tile] + task.kv_head * dim;
    PackRows(width, dim, shape.scale, k, unit.key_stride, keys);
    PackTransposed(width, dim, k, unit.key_stride, keys_transposed);
    PackTransposed(width, dim, v, unit.value_stride, values_transposed);
    std::fill_n(grad_k, 2 * tile_size, 0.0f);
    for (int64_t first = 0; first < unit.rows; first += kRows) {
      const int64_t count = std::min(kRows, unit.rows - first);
      const cpu_attention::RowsRange range = cpu_attention::rows_range(unit, first, count);
      if (key + width <= range.any.begin || key >= range.any.end) continue;
      const bool masked = key < range.all.begin || key + kAttentionTile > range.all.end;
      const int64_t row0 = unit.first_row + first;
      for (int64_t head = task.kv_head * group; head < (task.kv_head + 1) * group; ++head) {
        PackRows(count, dim, shape.scale, operands.q + row0 * operands.q_stride + head * dim,
                 operands.q_stride, q);
        PackRows(count, dim, 1.0f, operands.grad_o + row0 * operands.grad_o_stride + head * dim,
                 operands.grad_o_stride, grad_o);
        SmallMatmul(count, kAttentionTile, dim, q, dim, 1, keys_transposed, kAttentionTile, p,
                    kAttentionTile, false);
        for (int64_t i = 0; i < count; ++i) {
          float* row = p + i * kAttentionTile;
          if (masked) MaskRow(unit.visible[first + i], key, row);
          Probabilities(operands.log_sum_exp[(row0 + i) * heads + head], row);
        }
        SmallMatmul(width, dim, count, p, 1, kAttentionTile, grad_o, dim, grad_v, dim, true);
        SmallMatmul(count, kAttentionTile, dim, grad_o, dim, 1, values_transposed, kAttentionTile,
                    grad_scores, kAttentionTile, false);
        for (int64_t i = 0; i < count; ++i) {
          ScoreGradient(operands.delta[(row0 + i) * heads + head], p + i * kAttentionTile,
                        grad_scores + i * kAttentionTile);
        }
        SmallMatmul(width, dim, count, grad_scores, 1, kAttentionTile, q, dim, grad_k, dim, true);
        if (operands.grad_q != nullptr) {
          SmallMatmul(count, dim, width, grad_scores, kAttentionTile, 1, keys, dim,
                      operands.grad_q + row0 * operands.grad_q_stride + head * dim,
                      operands.grad_q_stride, true);
        }
      }
    }
    const int64_t key_row = unit.first_row + key, column = task.kv_head * dim;
    WriteGradient(width, dim, grad_k, operands.grad_k, key_row, column);
    WriteGradient(width, dim, grad_v, operands.grad_v, key_row, column);
  }
}

void Delta(const AttentionShape& shape, const float* grad_o, const float* o, float* delta) {
  for (int64_t h = 0; h < shape.heads; ++h) {
    delta[h] = DotProduct(grad_o + h * shape.head_dim, o + h * shape.head_dim, shape.head_dim);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(Backward);
HWY_EXPORT(Delta);

void cpu_attention::backward_task(const AttentionShape& shape, const BackwardTask& task,
                                  const BackwardOperands& operands) {
  HWY_DYNAMIC_DISPATCH(Backward)(shape, task, operands);
}

void cpu_attention::backward_delta(const AttentionShape& shape, const float* grad_o, const float* o,
                                   float* delta) {
  HWY_DYNAMIC_DISPATCH(Delta)(shape, grad_o, o, delta);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
