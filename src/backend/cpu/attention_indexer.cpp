// The indexer of DeepSeek sparse attention: scores of keys, and the keys with the largest.
#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_indexer.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/attention_scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// to[j] = sum_h weights[h] max(0, products[h][j]) of a tile.
HWY_INLINE void WeighProducts(int64_t heads, const float* weights, const float* products,
                              float* to) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t j = 0; j < kAttentionTile; j += lanes) {
    auto sum = hn::Zero(d);
    for (int64_t h = 0; h < heads; ++h) {
      const auto product = hn::Max(hn::Zero(d), hn::LoadU(d, products + h * kAttentionTile + j));
      sum = hn::MulAdd(hn::Set(d, weights[h]), product, sum);
    }
    hn::StoreU(sum, d, to + j);
  }
}

void IndexerScores(const IndexerOperands& indexer, const AttentionUnit& unit, int64_t first,
                   int64_t count, int64_t begin, int64_t end, float* scores, int64_t stride) {
  const int64_t heads = indexer.shape.heads, dim = indexer.shape.key_dim;
  const Storage memory(
      static_cast<size_t>(count * heads * (dim + kAttentionTile) + kAttentionTile * dim) *
      sizeof(float));
  float* q = reinterpret_cast<float*>(memory.data());
  float* products = q + count * heads * dim;
  float* scratch = products + count * heads * kAttentionTile;
  const int64_t row0 = unit.first_row + first;
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(indexer.q.row(row0 + i), heads * dim, q + i * heads * dim);
  }
  if (is_block_type(unit.type)) TurnBlocks(count * heads * dim, q);
  for (int64_t key = begin; key < end; key += kAttentionTile) {
    const KeyTile& tile = cpu_attention::tile_at(unit, key);
    const int64_t width = std::min<int64_t>(tile.count, end - key);
    const ConstMatrix keys =
        FloatRows(unit.type, tile.keys, 0, unit.key_stride, width, dim, scratch);
    ScoreTile(dim, count * heads, q, keys, width, products);
    for (int64_t i = 0; i < count; ++i) {
      WeighProducts(heads, indexer.weights.row(row0 + i), products + i * heads * kAttentionTile,
                    scores + i * stride + key);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(IndexerScores);

void cpu_attention::indexer_scores(const IndexerOperands& indexer, const AttentionUnit& unit,
                                   int64_t first, int64_t count, int64_t begin, int64_t end,
                                   float* scores, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(IndexerScores)(indexer, unit, first, count, begin, end, scores, stride);
}

namespace {

// As unsigned numbers floats are ordered as they are by value, NaN below all.
uint32_t ordered(float x) {
  if (std::isnan(x)) return 0;
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);  // -0 becomes 0
  constexpr uint32_t kSign = 0x80000000u;
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

// The `top`-th largest of `count` numbers; scratch [count]. Those that share its leading bits are
// found by counting, since a full selection reads a long text's scores several times.
uint32_t threshold(const uint32_t* numbers, int64_t count, int64_t top, uint32_t* scratch) {
  constexpr int kShift = 21;
  constexpr int kBins = 1 << (32 - kShift);
  int32_t bins[kBins] = {};
  for (int64_t i = 0; i < count; ++i) ++bins[numbers[i] >> kShift];
  uint32_t bin = kBins - 1;
  while (top > bins[bin]) top -= bins[bin--];
  int64_t near = 0;
  for (int64_t i = 0; i < count; ++i) {
    scratch[near] = numbers[i];
    near += numbers[i] >> kShift == bin;
  }
  std::nth_element(scratch, scratch + top - 1, scratch + near, std::greater<>());
  return scratch[top - 1];
}

}  // namespace

void cpu_attention::take_top(const float* scores, int64_t count, int64_t top, int32_t* out) {
  const Storage memory(static_cast<size_t>(2 * count) * sizeof(uint32_t));
  auto* numbers = reinterpret_cast<uint32_t*>(memory.data());
  for (int64_t i = 0; i < count; ++i) numbers[i] = ordered(scores[i]);
  const uint32_t least = threshold(numbers, count, top, numbers + count);
  int64_t equal = top - std::count_if(numbers, numbers + count,
                                      [least](uint32_t number) { return number > least; });
  int64_t taken = 0;
  for (int64_t i = 0; taken < top; ++i) {
    const bool takes = numbers[i] > least || (numbers[i] == least && equal-- > 0);
    if (takes) out[taken++] = static_cast<int32_t>(i);
  }
}

}  // namespace pronghorn
#endif  // HWY_ONCE
