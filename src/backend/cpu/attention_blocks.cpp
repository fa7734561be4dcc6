// Blocks of keys: vectors that stand for them, and which of them a row looks at.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_blocks.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/attention_scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// to[i] = op(to[i], from[i])
template <class Op>
HWY_INLINE void Combine(int64_t n, const float* HWY_RESTRICT from, float* HWY_RESTRICT to,
                        const Op& op) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(op(hn::LoadU(d, to + i), hn::LoadU(d, from + i)), d, to + i);
  }
  for (; i < n; ++i) to[i] = hn::GetLane(op(hn::Set(d, to[i]), hn::Set(d, from[i])));
}

// Row after row, so that the bits depend on the rows alone.
void SummariseBlock(const KeyBlock& block, BlockStatistic statistic, int64_t columns, DType type,
                    int64_t stride) {
  const Storage scratch(static_cast<size_t>(kAttentionTile * columns) * sizeof(float));
  float* high = block.to + columns;
  const bool bounds = statistic == BlockStatistic::bounds;
  int64_t rows = 0;
  for (const KeyTile& tile : block.tiles) {
    const ConstMatrix keys = FloatRows(type, tile.keys, 0, stride, tile.count, columns,
                                       reinterpret_cast<float*>(scratch.data()));
    if (is_block_type(type)) {  // the rows themselves, which lie in the scratch memory
      TurnBlocks(tile.count * columns, reinterpret_cast<float*>(scratch.data()));
    }
    for (int64_t i = 0; i < tile.count; ++i, ++rows) {
      const float* row = keys.row(i);
      if (rows == 0) {
        std::copy_n(row, columns, block.to);
        if (bounds) std::copy_n(row, columns, high);
      } else if (bounds) {
        Combine(columns, row, block.to, [](auto a, auto b) { return hn::Min(a, b); });
        Combine(columns, row, high, [](auto a, auto b) { return hn::Max(a, b); });
      } else {
        Combine(columns, row, block.to, [](auto a, auto b) { return hn::Add(a, b); });
      }
    }
  }
  if (!bounds) ScaleBy(columns, 1 / static_cast<float>(rows), block.to);
}

// max(q low, q high) summed over the columns: the largest q . k of keys k within the bounds.
HWY_INLINE float Bound(int64_t n, const float* HWY_RESTRICT q, const float* HWY_RESTRICT low,
                       const float* HWY_RESTRICT high) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto x = hn::LoadU(d, q + i);
    sum = hn::Add(sum,
                  hn::Max(hn::Mul(x, hn::LoadU(d, low + i)), hn::Mul(x, hn::LoadU(d, high + i))));
  }
  float total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < n; ++i) total += std::max(q[i] * low[i], q[i] * high[i]);
  return total;
}

// Scores of the heads of one key-value head with entries `seen`, each in a row of `scores`, which
// has a column for each entry, rounded up to tiles.
HWY_INLINE void ScoreEntries(const AttentionShape& shape, const BlockChoice& choice,
                             const AttentionUnit& unit, int64_t kv_head, const KeyRange& seen,
                             const float* q, float* tile_scores, float* scores, int64_t width) {
  const int64_t group = shape.heads / shape.kv_heads, dim = shape.key_dim;
  for (int64_t first = 0; first < seen.end; first += kAttentionTile) {
    const KeyTile& tile = cpu_attention::tile_at(unit, first);
    const int64_t count = std::min<int64_t>(tile.count, seen.end - first);
    const float* rows = reinterpret_cast<const float*>(tile.keys) + kv_head * dim;
    if (choice.score == BlockChoice::Score::bound) {
      const int64_t high = shape.kv_heads * dim;
      for (int64_t h = 0; h < group; ++h) {
        for (int64_t j = 0; j < count; ++j) {
          const float* low = rows + j * unit.key_stride;
          scores[h * width + first + j] = Bound(dim, q + h * dim, low, low + high);
        }
      }
      continue;
    }
    ScoreTile(dim, group, q, {rows, unit.key_stride}, count, tile_scores);
    for (int64_t h = 0; h < group; ++h) {
      std::copy_n(tile_scores + h * kAttentionTile, count, scores + h * width + first);
    }
  }
}

// The scores of one head -> their softmax; `width` is a multiple of the tile.
HWY_INLINE void SoftmaxEntries(float scale, int64_t count, float* scores) {
  if (count == 0) return;
  const int64_t width = (count + kAttentionTile - 1) / kAttentionTile * kAttentionTile;
  std::fill(scores + count, scores + width, kMinusInfinity);
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto largest = hn::Set(d, kMinusInfinity), total = hn::Zero(d);
  for (int64_t j = 0; j < width; j += lanes) largest = hn::Max(largest, hn::LoadU(d, scores + j));
  const auto shift = hn::MaxOfLanes(d, largest), factor = hn::Set(d, scale);
  for (int64_t j = 0; j < width; j += lanes) {
    const auto p = Exp(d, hn::Mul(factor, hn::Sub(hn::LoadU(d, scores + j), shift)));
    hn::StoreU(p, d, scores + j);
    total = hn::Add(total, p);
  }
  ScaleBy(count, 1 / hn::GetLane(hn::SumOfLanes(d, total)), scores);
}

// Scores of blocks 0 ... blocks - 1 from those of the entries `seen`.
HWY_INLINE void BlockScores(const BlockChoice& choice, const KeyRange& seen, const float* entries,
                            int64_t blocks, float* scores) {
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = b * choice.block_cells, end = begin + choice.block_cells;
    // Entry e covers cells e ... e + entry_cells - 1.
    const int64_t first = std::max(seen.begin, begin - choice.entry_cells + 1);
    float sum = 0;
    for (int64_t e = first; e < std::min(seen.end, end); ++e) {
      const int64_t cells = std::min(end, e + choice.entry_cells) - std::max(begin, e);
      sum += static_cast<float>(cells) * entries[e];
    }
    scores[b] = sum;
  }
}

// The blocks of one list, ascending.
HWY_INLINE void TakeBest(const BlockChoice& choice, int64_t blocks, float* scores, int32_t* order,
                         int32_t* out) {
  for (int64_t b = 0; b < blocks; ++b) {
    order[b] = static_cast<int32_t>(b);
    const bool always = b < choice.first || b + choice.last >= blocks;
    if (always) scores[b] = std::numeric_limits<float>::infinity();
    if (std::isnan(scores[b])) scores[b] = kMinusInfinity;
  }
  const int64_t count = std::min(blocks, choice.top);
  std::nth_element(order, order + count, order + blocks, [&](int32_t a, int32_t b) {
    // Of those that are always there, the last come first: a row sees its own block.
    if (scores[a] != scores[b]) return scores[a] > scores[b];
    return std::isinf(scores[a]) ? a > b : a < b;
  });
  std::sort(order, order + count);
  std::copy_n(order, count, out);
  std::fill(out + count, out + choice.top, -1);
}

void ChooseRow(const AttentionShape& shape, const BlockChoice& choice, const AttentionUnit& unit,
               int64_t row, const ConstMatrix& q, int32_t own_block, int32_t* out) {
  const int64_t group = shape.heads / shape.kv_heads, dim = shape.key_dim;
  const int64_t heads = shape.heads / choice.lists;  // of a list
  const KeyRange& seen = unit.visible[row];
  const int64_t blocks = int64_t{own_block} + 1;
  const int64_t width = (seen.end + kAttentionTile - 1) / kAttentionTile * kAttentionTile;
  const Storage memory(static_cast<size_t>(group * (width + kAttentionTile) + 2 * blocks) *
                       sizeof(float));
  float* tile_scores = reinterpret_cast<float*>(memory.data());
  float* entries = tile_scores + group * kAttentionTile;
  float* scores = entries + group * width;
  auto* order = reinterpret_cast<int32_t*>(scores + blocks);
  for (int64_t kv_head = unit.first_kv_head; kv_head < unit.first_kv_head + unit.kv_heads;
       ++kv_head) {
    ScoreEntries(shape, choice, unit, kv_head, seen,
                 q.row(unit.first_row + row) + kv_head * group * dim, tile_scores, entries, width);
    for (int64_t h = 0; h < group; ++h) {
      float* own = entries + h * width;
      if (choice.score == BlockChoice::Score::softmax) SoftmaxEntries(shape.scale, seen.end, own);
      if (h % heads == 0) continue;
      Combine(seen.end, own, entries + h / heads * heads * width,
              [](auto a, auto b) { return hn::Add(a, b); });
    }
    for (int64_t h = 0; h < group; h += heads) {
      BlockScores(choice, seen, entries + h * width, blocks, scores);
      TakeBest(choice, blocks, scores, order, out + (kv_head * group + h) / heads * choice.top);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(SummariseBlock);
HWY_EXPORT(ChooseRow);

void cpu_attention::summarise_block(const KeyBlock& block, BlockStatistic statistic,
                                    int64_t columns, DType type, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(SummariseBlock)(block, statistic, columns, type, stride);
}

void cpu_attention::choose_row(const AttentionShape& shape, const BlockChoice& choice,
                               const AttentionUnit& unit, int64_t row, const ConstMatrix& q,
                               int32_t own_block, int32_t* out) {
  HWY_DYNAMIC_DISPATCH(ChooseRow)(shape, choice, unit, row, q, own_block, out);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
