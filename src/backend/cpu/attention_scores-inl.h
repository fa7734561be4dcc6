// Scores of queries and keys whose bits depend on the two alone: rows computed together only share
// loads. Included once for each instruction set, see simd-inl.h.
#if defined(PRONGHORN_ATTENTION_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_ATTENTION_SCORES_INL_H_
#undef PRONGHORN_ATTENTION_SCORES_INL_H_
#else
#define PRONGHORN_ATTENTION_SCORES_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "backend/cpu/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Rows of a tile that are asked for while another is computed with, one at a time: all at once they
// would fill the buffers of what is on its way, and nothing would be computed until they are there.
// They are sent for to the second-level cache: often they lie a power of two apart, and the first
// level would throw most of them out again.
struct RowsAhead {
  struct Part {
    const std::byte* from = nullptr;
    int64_t bytes = 0, stride = 0;  // of a row; from one to the next
  };
  Part keys, values;
  int64_t rows = 0;
  int64_t steps = 1;  // calls of ask() for all rows
  int64_t next = 0, credit = 0;

  HWY_INLINE void ask() {
    if (next == rows) return;
    for (credit += rows; credit >= steps && next < rows; credit -= steps, ++next) {
      ask_row(keys);
      ask_row(values);
    }
  }

 private:
  HWY_INLINE void ask_row(const Part& part) const {
    constexpr int64_t kCacheLine = 64;
    for (int64_t c = 0; c < part.bytes; c += kCacheLine) {
      __builtin_prefetch(part.from + next * part.stride + c, 0, 2);
    }
  }
};

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
    hn::Vec<FloatTag> query[R];
    for (int r = 0; r < R; ++r) query[r] = hn::LoadU(d, q + r * dim + p);
    for (int c = 0; c < C; ++c) {
      const auto key = hn::LoadU(d, keys + c * key_stride + p);
      for (int r = 0; r < R; ++r) acc[r][c] = hn::MulAdd(query[r], key, acc[r][c]);
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
                        int64_t count, float* scores, RowsAhead* ahead) {
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    if (ahead != nullptr) ahead->ask();
    DotTile<R, 4>(dim, q, keys + j * key_stride, key_stride, scores + j);
  }
  if (count - j == 1) DotTile<R, 1>(dim, q, keys + j * key_stride, key_stride, scores + j);
  if (count - j == 2) DotTile<R, 2>(dim, q, keys + j * key_stride, key_stride, scores + j);
  if (count - j == 3) DotTile<R, 3>(dim, q, keys + j * key_stride, key_stride, scores + j);
}

// How many of `left` rows to compute next: as many as have registers for four sums each, and no
// single one after three.
HWY_INLINE int64_t RowsTogether(int64_t left) {
#if HWY_TARGET <= HWY_AVX3
  constexpr int64_t kMost = 4;
#else
  constexpr int64_t kMost = 3;
#endif
  return left == kMost + 1 ? 2 : std::min(left, kMost);
}

// Scores of all queries and the first `count` keys of a tile.
HWY_INLINE void ScoreTile(int64_t dim, int64_t queries, const float* q, const ConstMatrix& keys,
                          int64_t count, float* scores, RowsAhead* ahead = nullptr) {
  for (int64_t some = 0; queries > 0; queries -= some) {
    some = RowsTogether(queries);
    if (some == 1) DotRows<1>(dim, q, keys.data, keys.stride, count, scores, ahead);
    if (some == 2) DotRows<2>(dim, q, keys.data, keys.stride, count, scores, ahead);
    if (some == 3) DotRows<3>(dim, q, keys.data, keys.stride, count, scores, ahead);
#if HWY_TARGET <= HWY_AVX3
    if (some == 4) DotRows<4>(dim, q, keys.data, keys.stride, count, scores, ahead);
#endif
    q += some * dim;
    scores += some * kAttentionTile;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_ATTENTION_SCORES_INL_H_
