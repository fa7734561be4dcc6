// Scores of queries and keys whose bits depend on the two alone: rows computed together only share
// loads. Included once for each instruction set, see simd-inl.h.
#if defined(PRONGHORN_ATTENTION_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_ATTENTION_SCORES_INL_H_
#undef PRONGHORN_ATTENTION_SCORES_INL_H_
#else
#define PRONGHORN_ATTENTION_SCORES_INL_H_
#endif

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

// Scores of R queries and the first `count` keys of a tile; those after them are undefined.
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

// Scores of all queries and the first `count` keys of a tile.
HWY_INLINE void ScoreTile(int64_t dim, int64_t queries, const float* q, const ConstMatrix& keys,
                          int64_t count, float* scores) {
  int64_t r = 0;
  for (; r + 4 <= queries; r += 4) {
    DotRows<4>(dim, q + r * dim, keys.data, keys.stride, count, scores + r * kAttentionTile);
  }
  for (; r < queries; ++r) {
    DotRows<1>(dim, q + r * dim, keys.data, keys.stride, count, scores + r * kAttentionTile);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_ATTENTION_SCORES_INL_H_
