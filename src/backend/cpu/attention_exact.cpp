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

#include "backend/cpu/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {

// scores[r][c] = q_r . k_c for R queries and C <= 4 keys (four scores are written): each is one sum
// by lanes, then over the lanes, whatever R and C are.
template <int R, int C>
HWY_INLINE void DotTile(int64_t dim, const float* HWY_RESTRICT q, const float* HWY_RESTRICT keys,
                        int64_t key_stride, float* HWY_RESTRICT scores) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<FloatTag> acc[R][4];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < 4; ++c) acc[r][c] = hn::Zero(d);
  }
  int64_t p = 0;
  for (; p + lanes <= dim; p += lanes) {
    hn::Vec<FloatTag> key[C];
    for (int c = 0; c < C; ++c) key[c] = hn::LoadU(d, keys + c * key_stride + p);
    for (int r = 0; r < R; ++r) {
      const auto query = hn::LoadU(d, q + r * dim + p);
      for (int c = 0; c < C; ++c) acc[r][c] = hn::MulAdd(query, key[c], acc[r][c]);
    }
  }
  if (p < dim) {
    const auto rest = static_cast<size_t>(dim - p);
    for (int r = 0; r < R; ++r) {
      const auto query = LoadPartial(d, rest, q + r * dim + p);
      for (int c = 0; c < C; ++c) {
        const auto key = LoadPartial(d, rest, keys + c * key_stride + p);
        acc[r][c] = hn::MulAdd(query, key, acc[r][c]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    SumFour(d, acc[r][0], acc[r][1], acc[r][2], acc[r][3], scores + r * kAttentionTile);
  }
}

// Scores of R queries and the first `count` keys of a tile; those behind are undefined.
template <int R>
HWY_INLINE void DotRows(int64_t dim, const float* q, const float* keys, int64_t key_stride,
                        int64_t count, float* scores) {
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    DotTile<R, 4>(dim, q, keys + j * key_stride, key_stride, scores + j);
  }
  if (count - j == 1) DotTile<R, 1>(dim, q, keys + j * key_stride, key_stride, scores + j);
  if (count - j == 2) DotTile<R, 2>(dim, q, keys + j * key_stride, key_stride, scores + j);
  if (count - j == 3) DotTile<R, 3>(dim, q, keys + j * key_stride, key_stride, scores + j);
}

// Asks for one head's part of `rows` rows. They lie apart, which hides the stream from the
// hardware's own prefetching, and often a power of two apart, so they are sent for to the
// second-level cache: the first level would throw most of them out again.
HWY_INLINE void PrefetchRows(int64_t rows, int64_t dim, const float* from, int64_t stride) {
  constexpr int64_t kCacheLine = 16;  // floats
  for (int64_t j = 0; j < rows; ++j) {
    for (int64_t c = 0; c < dim; c += kCacheLine) __builtin_prefetch(from + j * stride + c, 0, 2);
  }
}

void ExactSplit(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
                int64_t split, const AttentionOperands& operands, float* partial) {
  const int64_t dim = shape.head_dim;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t count = unit.rows * group;  // query i * group + h: row i, head h of the group
  const Storage scratch(static_cast<size_t>(count * (dim + kAttentionTile)) * sizeof(float));
  float* q = reinterpret_cast<float*>(scratch.data());
  float* scores = q + count * dim;
  for (int64_t i = 0; i < unit.rows; ++i) {
    ScaleInto(group * dim, shape.scale,
              operands.q + (unit.first_row + i) * operands.q_stride + kv_head * group * dim,
              q + i * group * dim);
  }
  float* maximum = partial;
  float* sum = maximum + count;
  float* o = sum + count;
  std::fill_n(maximum, count, kMinusInfinity);
  std::fill_n(sum, count * (dim + 1), 0.0f);

  const cpu_attention::RowsRange range = cpu_attention::rows_range(unit, 0, unit.rows);
  const int64_t split_begin = split * cpu_attention::kSplitKeys;
  const int64_t end = std::min(range.any.end, split_begin + cpu_attention::kSplitKeys);
  int64_t key = std::max(split_begin, range.any.begin / kAttentionTile * kAttentionTile);
  for (; key < end; key += kAttentionTile) {
    const int64_t tile = key / kAttentionTile;
    const int64_t width = std::min(kAttentionTile, end - key);
    const float* keys = unit.key_tiles[tile] + kv_head * dim;
    const float* values = unit.value_tiles[tile] + kv_head * dim;
    PrefetchRows(width, dim, values, unit.value_stride);
    int64_t r = 0;
    for (; r + 4 <= count; r += 4) {
      DotRows<4>(dim, q + r * dim, keys, unit.key_stride, width, scores + r * kAttentionTile);
    }
    for (; r < count; ++r) {
      DotRows<1>(dim, q + r * dim, keys, unit.key_stride, width, scores + r * kAttentionTile);
    }
    if (key + kAttentionTile < end) {
      PrefetchRows(std::min(kAttentionTile, end - key - kAttentionTile), dim,
                   unit.key_tiles[tile + 1] + kv_head * dim, unit.key_stride);
    }
    for (r = 0; r < count; ++r) {
      float* row = scores + r * kAttentionTile;
      MaskRow(unit.visible[r / group], key, row);
      const float factor = OnlineSoftmaxRow(row, maximum[r], sum[r]);
      if (factor != 1) ScaleBy(dim, factor, o + r * dim);
    }
    SmallMatmul(count, dim, width, scores, kAttentionTile, 1, values, unit.value_stride, o, dim,
                true);
  }
}

void ExactMerge(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
                const float* partials, int64_t splits, const AttentionOperands& operands) {
  const int64_t dim = shape.head_dim;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t count = unit.rows * group;
  const int64_t size = cpu_attention::partial_size(shape, unit);
  for (int64_t r = 0; r < count; ++r) {
    float* to = operands.o + (unit.first_row + r / group) * operands.o_stride +
                (kv_head * group + r % group) * dim;
    std::fill_n(to, dim, 0.0f);
    float maximum = kMinusInfinity, sum = 0;
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
    if (operands.log_sum_exp != nullptr) {
      const FloatTag d;
      operands
          .log_sum_exp[(unit.first_row + r / group) * shape.heads + kv_head * group + r % group] =
          sum > 0 ? maximum + hn::GetLane(Log(d, hn::Set(d, sum))) : 0.0f;
    }
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
