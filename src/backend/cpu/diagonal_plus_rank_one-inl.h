// What the chunked forward and backward passes of diagonal-plus-rank-one states share: the rows of
// a chunk, their decays, and the scores of their pairs.
//
// With products of decays F_i = w_1 .. w_i and D(i, j) = w_{j+1} .. w_i, channel by channel, a
// chunk of n rows from state S is
//   reads  = [a_i F_{i-1}; q_i F_i] S
//   scores = [a_i . k_j D(i-1, j), a_i . b_j D(i-1, j)]  for j < i
//            [q_i . k_j D(i, j),   q_i . b_j D(i, j)]    for j <= i
//   Z      = the reads of a + their scores [V; Z]
//   O      = the reads of q + their scores [V; Z]
//   S     <- F_n S + [k_j D(n, j); b_j D(n, j)]^T [V; Z]
#if defined(PRONGHORN_DIAGONAL_PLUS_RANK_ONE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_DIAGONAL_PLUS_RANK_ONE_INL_H_
#undef PRONGHORN_DIAGONAL_PLUS_RANK_ONE_INL_H_
#else
#define PRONGHORN_DIAGONAL_PLUS_RANK_ONE_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "backend/cpu/diagonal_plus_rank_one_tasks.h"
#include "backend/cpu/outer_product_state-inl.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Rows of keys are padded with zeros to whole vectors.
inline int64_t PaddedKeys(int64_t key_dim) {
  const auto lanes = std::max<int64_t>(16, static_cast<int64_t>(hn::Lanes(FloatTag())));
  return (key_dim + lanes - 1) / lanes * lanes;
}

// Calls body(c) for the vectors of padded rows.
template <class Body>
HWY_INLINE void ForEachKeyVector(int64_t width, const Body& body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  for (int64_t c = 0; c < width; c += lanes) body(c);
}

// The rows of one head in one chunk. Matrices of keys have rows of `width`.
struct RankOneRows {
  RankOneRows(Scratch& scratch, int64_t key_dim)
      : width(PaddedKeys(key_dim)),
        q(scratch.take(kRankOneChunk * width)),
        k(scratch.take(kRankOneChunk * width)),
        a(scratch.take(kRankOneChunk * width)),
        b(scratch.take(kRankOneChunk * width)),
        w(scratch.take(kRankOneChunk * width)),
        from_start(scratch.take(2 * kRankOneChunk * width)),
        to_end(scratch.take(2 * kRankOneChunk * width)),
        total(scratch.take(width)),
        scores(scratch.take(4 * kRankOneChunk * kRankOneChunk)),
        running(scratch.take(2 * width)) {}

  int64_t n = 0;
  int64_t width;
  float *q, *k, *a, *b, *w;  // [n]; q scaled, w the decays
  float* from_start;         // [2 n]: a_i F_{i-1}, then q_i F_i
  float* to_end;             // [2 n]: k_j D(n, j), then b_j D(n, j)
  float* total;              // F_n
  float* scores;             // [2 n, 2 n], zeros above the diagonals
  float* running;
};

inline void PackKeys(const RankOneRows& rows, int64_t key_dim, const float* from, int64_t stride,
                     float scale, float* to) {
  for (int64_t i = 0; i < rows.n; ++i) {
    PackRows(1, key_dim, from + i * stride, stride, scale, to + i * rows.width);
    std::fill(to + i * rows.width + key_dim, to + (i + 1) * rows.width, 0.0f);
  }
}

// k, b and w, and from them to_end and total.
inline void LoadWrites(const RankOneProblem& problem, int64_t head, int64_t row, int64_t n,
                       RankOneRows& rows) {
  const int64_t key_dim = problem.key_dim, column = head * key_dim, width = rows.width;
  rows.n = n;
  PackKeys(rows, key_dim, problem.k.row(row) + column, problem.k.stride, 1, rows.k);
  PackKeys(rows, key_dim, problem.b.row(row) + column, problem.b.stride, 1, rows.b);
  PackKeys(rows, key_dim, problem.log_decay.row(row) + column, problem.log_decay.stride, 1, rows.w);
  ForEachKeyVector(width, [&](int64_t c) HWY_ATTR {
    const FloatTag d;
    auto decay = hn::Set(d, 1.0f);
    for (int64_t i = n - 1; i >= 0; --i) {
      const int64_t at = i * width + c;
      hn::Store(hn::Mul(hn::Load(d, rows.k + at), decay), d, rows.to_end + at);
      hn::Store(hn::Mul(hn::Load(d, rows.b + at), decay), d, rows.to_end + n * width + at);
      const auto own = Exp(d, hn::Load(d, rows.w + at));
      hn::Store(own, d, rows.w + at);
      decay = hn::Mul(decay, own);
    }
    hn::Store(decay, d, rows.total + c);
  });
}

// q and a, and from them from_start. After LoadWrites().
inline void LoadReads(const RankOneProblem& problem, int64_t head, int64_t row, RankOneRows& rows) {
  const int64_t key_dim = problem.key_dim, column = head * key_dim, width = rows.width;
  PackKeys(rows, key_dim, problem.q.row(row) + column, problem.q.stride, problem.query_scale,
           rows.q);
  PackKeys(rows, key_dim, problem.a.row(row) + column, problem.a.stride, 1, rows.a);
  ForEachKeyVector(width, [&](int64_t c) HWY_ATTR {
    const FloatTag d;
    auto decay = hn::Set(d, 1.0f);
    for (int64_t i = 0; i < rows.n; ++i) {
      const int64_t at = i * width + c;
      hn::Store(hn::Mul(hn::Load(d, rows.a + at), decay), d, rows.from_start + at);
      decay = hn::Mul(decay, hn::Load(d, rows.w + at));
      hn::Store(hn::Mul(hn::Load(d, rows.q + at), decay), d, rows.from_start + rows.n * width + at);
    }
  });
}

// The scores: for each j its k and b run down the chunk, decaying as they go.
inline void PairScores(RankOneRows& rows) {
  const FloatTag d;
  const int64_t n = rows.n, width = rows.width;
  float *k = rows.running, *b = rows.running + width;
  std::fill_n(rows.scores, 4 * n * n, 0.0f);
  for (int64_t j = 0; j < n; ++j) {
    std::memcpy(k, rows.k + j * width, static_cast<size_t>(width) * sizeof(float));
    std::memcpy(b, rows.b + j * width, static_cast<size_t>(width) * sizeof(float));
    float* own = rows.scores + (n + j) * 2 * n + j;
    own[0] = DotProduct(rows.q + j * width, k, width);
    own[n] = DotProduct(rows.q + j * width, b, width);
    for (int64_t i = j + 1; i < n; ++i) {
      const float *a = rows.a + i * width, *q = rows.q + i * width, *w = rows.w + i * width;
      auto ak = hn::Zero(d), ab = hn::Zero(d), qk = hn::Zero(d), qb = hn::Zero(d);
      ForEachKeyVector(width, [&](int64_t c) HWY_ATTR {
        const auto decay = hn::Load(d, w + c), reader = hn::Load(d, a + c);
        const auto query = hn::Load(d, q + c);
        auto key = hn::Load(d, k + c), update = hn::Load(d, b + c);
        ak = hn::MulAdd(reader, key, ak);
        ab = hn::MulAdd(reader, update, ab);
        key = hn::Mul(key, decay);
        update = hn::Mul(update, decay);
        qk = hn::MulAdd(query, key, qk);
        qb = hn::MulAdd(query, update, qb);
        hn::Store(key, d, k + c);
        hn::Store(update, d, b + c);
      });
      HWY_ALIGN float sums[4];
      SumFour(d, ak, ab, qk, qb, sums);
      float* of_a = rows.scores + i * 2 * n + j;
      float* of_q = rows.scores + (n + i) * 2 * n + j;
      of_a[0] = sums[0];
      of_a[n] = sums[1];
      of_q[0] = sums[2];
      of_q[n] = sums[3];
    }
  }
}

// state <- F_n state + to_end^T values: values [2 n, columns]. blank: the state is zero.
inline void AdvanceState(const RankOneRows& rows, int64_t key_dim, int64_t columns,
                         const float* values, bool blank, const float* state, float* to) {
  if (!blank) ScaleRows(key_dim, columns, rows.total, state, to);
  SmallMatmul(key_dim, columns, 2 * rows.n, rows.to_end, 1, rows.width, values, columns, to,
              columns, !blank);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_DIAGONAL_PLUS_RANK_ONE_INL_H_
