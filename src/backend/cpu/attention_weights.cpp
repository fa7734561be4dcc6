// What queries give to keys: their shares in the softmax, added up over heads and rows.
#include <algorithm>

#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_weights.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/attention_scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// total += exp(scores - log_sum_exp), a tile.
HWY_INLINE void AddShares(float log_sum_exp, const float* HWY_RESTRICT scores,
                          float* HWY_RESTRICT total) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto shift = hn::Set(d, log_sum_exp);
  for (int64_t j = 0; j < kAttentionTile; j += lanes) {
    const auto share = Exp(d, hn::Sub(hn::LoadU(d, scores + j), shift));
    hn::StoreU(hn::Add(hn::LoadU(d, total + j), share), d, total + j);
  }
}

void WeighTile(const AttentionShape& shape, const AttentionUnit& unit, int64_t index,
               const ConstMatrix& q, const ConstMatrix& log_sum_exp, float* weights) {
  const int64_t group = shape.heads / shape.kv_heads, dim = shape.key_dim;
  const int64_t columns = shape.kv_heads * dim;
  const KeyTile& tile = unit.tiles[static_cast<size_t>(index)];
  const bool in_prefix = index < unit.prefix_tiles;
  const int64_t first_key =
      (in_prefix ? index : index - unit.prefix_tiles + unit.first_tile) * kAttentionTile;
  const Storage memory(static_cast<size_t>(kAttentionTile * (columns + group + 1)) * sizeof(float));
  float* rows = reinterpret_cast<float*>(memory.data());
  float* scores = rows + kAttentionTile * columns;
  float* total = scores + kAttentionTile * group;
  const ConstMatrix keys =
      FloatRows(unit.type, tile.keys, 0, unit.key_stride, tile.count, columns, rows);
  if (is_block_type(unit.type)) TurnBlocks(tile.count * columns, rows);
  std::fill_n(scores, kAttentionTile * group, 0.0f);
  for (int64_t i = 0; i < unit.rows; ++i) {
    const int64_t row = unit.first_row + i;
    std::fill_n(total, kAttentionTile, 0.0f);
    for (int64_t kv = 0; kv < shape.kv_heads; ++kv) {
      ScoreTile(dim, group, q.row(row) + kv * group * dim, {keys.data + kv * dim, keys.stride},
                tile.count, scores);
      for (int64_t h = 0; h < group; ++h) {
        float* own = scores + h * kAttentionTile;
        ScaleBy(kAttentionTile, shape.scale, own);
        if (shape.soft_cap > 0) CapScores(shape.soft_cap, own, nullptr);
        MaskRow(unit.visible[i], first_key, tile.count, own);
        AddShares(log_sum_exp.row(row)[kv * group + h], own, total);
        // What no score is written to must stay a number.
        std::fill(own + tile.count, own + kAttentionTile, 0.0f);
      }
    }
    for (int64_t j = 0; j < kAttentionTile; ++j) weights[j] += total[j];
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(WeighTile);

void cpu_attention::weigh_tile(const AttentionShape& shape, const AttentionUnit& unit, int64_t tile,
                               const ConstMatrix& q, const ConstMatrix& log_sum_exp,
                               float* weights) {
  HWY_DYNAMIC_DISPATCH(WeighTile)(shape, unit, tile, q, log_sum_exp, weights);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
