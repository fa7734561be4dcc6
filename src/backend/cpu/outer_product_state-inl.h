// What the chunked forward and backward passes of outer-product states share: packing, decays
// within a chunk, and products with triangular matrices. Matrices of pairs of rows are
// [kOuterProductChunk, kOuterProductChunk], row i the later one; of those, only columns up to the
// end of i's block of kBlock rows are ever touched, with zeros above the diagonal.
#if defined(PRONGHORN_OUTER_PRODUCT_STATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_OUTER_PRODUCT_STATE_INL_H_
#undef PRONGHORN_OUTER_PRODUCT_STATE_INL_H_
#else
#define PRONGHORN_OUTER_PRODUCT_STATE_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/outer_product_state_tasks.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kChunk = kOuterProductChunk;
constexpr int64_t kBlock = 16;

// The state forgets all it held by a decay of e^-1000; sums of clamped decays stay finite.
constexpr float kLowestLogDecay = -1000.0f;

// to[i, j] = scale from[i, j]; `to` has rows of `columns`.
inline void PackRows(int64_t rows, int64_t columns, const float* from, int64_t from_row,
                     float scale, float* HWY_RESTRICT to) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* HWY_RESTRICT source = from + i * from_row;
    for (int64_t j = 0; j < columns; ++j) to[i * columns + j] = scale * source[j];
  }
}

// Decays of one head within one chunk of n rows; G_i is the sum of log-decays up to row i.
struct ChunkDecay {
  explicit ChunkDecay(Scratch& scratch)
      : from_start(scratch.take(kChunk)),
        to_end(scratch.take(kChunk)),
        pairs(scratch.take(kChunk * kChunk)),
        high(scratch.take(kChunk)),
        low(scratch.take(kChunk)) {}

  float* from_start;  // exp(G_i)
  float* to_end;      // exp(G_n - G_i)
  float total = 1;    // exp(G_n)
  float* pairs;       // exp(G_i - G_j) for j <= i
  // G_i = high + low, so that differences of large sums keep their precision.
  float *high, *low;
};

// End of the columns of row i that are touched.
inline int64_t RowEnd(int64_t i) { return (i / kBlock + 1) * kBlock; }

template <bool kGated>
inline void ComputeDecay(int64_t n, const float* log_decay, int64_t stride, ChunkDecay& decay) {
  if constexpr (!kGated) {
    std::fill_n(decay.from_start, n, 1.0f);
    std::fill_n(decay.to_end, n, 1.0f);
    decay.total = 1;
    for (int64_t i = 0; i < n; ++i) {
      std::fill_n(decay.pairs + i * kChunk, i + 1, 1.0f);
      std::fill_n(decay.pairs + i * kChunk + i + 1, RowEnd(i) - i - 1, 0.0f);
    }
    return;
  }
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += std::max(log_decay[i * stride], kLowestLogDecay);
    decay.high[i] = static_cast<float>(sum);
    decay.low[i] = static_cast<float>(sum - decay.high[i]);
  }
  std::fill_n(decay.high + n, kChunk - n, 0.0f);
  std::fill_n(decay.low + n, kChunk - n, 0.0f);
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto last_high = hn::Set(d, decay.high[n - 1]), last_low = hn::Set(d, decay.low[n - 1]);
  for (int64_t j = 0; j < kChunk; j += lanes) {
    const auto high = hn::Load(d, decay.high + j), low = hn::Load(d, decay.low + j);
    hn::Store(Exp(d, hn::Add(high, low)), d, decay.from_start + j);
    const auto rest = hn::Add(hn::Sub(last_high, high), hn::Sub(last_low, low));
    hn::Store(Exp(d, rest), d, decay.to_end + j);
  }
  decay.total = decay.from_start[n - 1];
  for (int64_t i = 0; i < n; ++i) {
    float* pairs = decay.pairs + i * kChunk;
    const auto own_high = hn::Set(d, decay.high[i]), own_low = hn::Set(d, decay.low[i]);
    for (int64_t j = 0; j <= i; j += lanes) {
      const auto high = hn::Load(d, decay.high + j), low = hn::Load(d, decay.low + j);
      hn::Store(Exp(d, hn::Add(hn::Sub(own_high, high), hn::Sub(own_low, low))), d, pairs + j);
    }
    std::fill_n(pairs + i + 1, RowEnd(i) - i - 1, 0.0f);
  }
}

// scores[i, j] = a_i . b_j for j <= i (and the rest of i's block); b_t is b transposed,
// [k, kChunk].
inline void LowerScores(int64_t n, int64_t k, const float* a, const float* b_t, float* scores) {
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t rows = std::min(kBlock, n - i);
    SmallMatmul(rows, i + rows, k, a + i * k, k, 1, b_t, kChunk, scores + i * kChunk, kChunk,
                false);
  }
}

// c (+)= lower b: c, b [n, columns].
inline void LowerProduct(int64_t n, int64_t columns, const float* lower, const float* b, float* c,
                         bool accumulate) {
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t rows = std::min(kBlock, n - i);
    SmallMatmul(rows, columns, i + rows, lower + i * kChunk, kChunk, 1, b, columns, c + i * columns,
                columns, accumulate);
  }
}

// c (+)= lower^T b: c, b [n, columns].
inline void LowerTransposedProduct(int64_t n, int64_t columns, const float* lower, const float* b,
                                   float* c, bool accumulate) {
  for (int64_t j = 0; j < n; j += kBlock) {
    const int64_t rows = std::min(kBlock, n - j);
    SmallMatmul(rows, columns, n - j, lower + j * kChunk + j, 1, kChunk, b + j * columns, columns,
                c + j * columns, columns, accumulate);
  }
}

// to = x * y within the lower triangle.
inline void LowerMultiply(int64_t n, const float* HWY_RESTRICT x, const float* HWY_RESTRICT y,
                          float* HWY_RESTRICT to) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t end = RowEnd(i);
    for (int64_t j = 0; j < end; ++j) to[i * kChunk + j] = x[i * kChunk + j] * y[i * kChunk + j];
  }
}

// to[i] = factors[i] from[i], rows of `columns`.
inline void ScaleRows(int64_t n, int64_t columns, const float* factors, const float* from,
                      float* to) {
  for (int64_t i = 0; i < n; ++i) {
    const float factor = factors[i];
    for (int64_t c = 0; c < columns; ++c) to[i * columns + c] = factor * from[i * columns + c];
  }
}

// Where the columns of one virtual head lie.
struct HeadPlace {
  HeadPlace(const OuterProductProblem& problem, const ChunkTask& task, int64_t index)
      : head((task.first_head + index) / task.slices),
        columns(problem.value_dim / task.slices),
        column(head * problem.value_dim + (task.first_head + index) % task.slices * columns),
        state(head * problem.key_dim * problem.value_dim + column - head * problem.value_dim) {}

  int64_t head;
  int64_t columns;  // how many
  int64_t column;   // the first, in rows of all value heads
  int64_t state;    // the first number in states of all value heads
};

// The states of a task, [heads, key_dim, columns], out of those of all value heads (null: zeros).
inline void TakeStates(const OuterProductProblem& problem, const ChunkTask& task, const float* from,
                       float* states) {
  for (int64_t index = 0; index < task.heads; ++index) {
    const HeadPlace place(problem, task, index);
    float* state = states + index * problem.key_dim * place.columns;
    if (from != nullptr) {
      PackRows(problem.key_dim, place.columns, from + place.state, problem.value_dim, 1, state);
    } else {
      std::fill_n(state, problem.key_dim * place.columns, 0.0f);
    }
  }
}

// Writes the state of one virtual head into `to`, which holds those of all value heads.
inline void StoreState(const OuterProductProblem& problem, const HeadPlace& place,
                       const float* state, float* to) {
  for (int64_t c = 0; c < problem.key_dim; ++c) {
    std::memcpy(to + place.state + c * problem.value_dim, state + c * place.columns,
                static_cast<size_t>(place.columns) * sizeof(float));
  }
}

inline void StoreFinalStates(const OuterProductProblem& problem, const ChunkTask& task,
                             const float* states) {
  if (task.segment->state_out == nullptr) return;
  for (int64_t index = 0; index < task.heads; ++index) {
    const HeadPlace place(problem, task, index);
    StoreState(problem, place, states + index * problem.key_dim * place.columns,
               task.segment->state_out);
  }
}

// Keeps the residuals of a virtual head in rows [row, row + n) for the backward pass.
inline void StoreResiduals(const OuterProductProblem& problem, const HeadPlace& place, int64_t row,
                           int64_t n, const float* z, float* residuals) {
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(residuals + (row + i) * problem.value_heads * problem.value_dim + place.column,
                z + i * place.columns, static_cast<size_t>(place.columns) * sizeof(float));
  }
}

// x (+)= y, element by element.
inline void AddTo(int64_t count, const float* HWY_RESTRICT y, float* HWY_RESTRICT x) {
  for (int64_t e = 0; e < count; ++e) x[e] += y[e];
}

// Adds the states of a task to those of all value heads (null: they are not wanted).
inline void AddStates(const OuterProductProblem& problem, const ChunkTask& task,
                      const float* states, float* to) {
  for (int64_t index = 0; to != nullptr && index < task.heads; ++index) {
    const HeadPlace place(problem, task, index);
    const float* state = states + index * problem.key_dim * place.columns;
    for (int64_t c = 0; c < problem.key_dim; ++c) {
      AddTo(place.columns, state + c * place.columns, to + place.state + c * problem.value_dim);
    }
  }
}

// beta of one head in n rows.
inline void TakeStrengths(const OuterProductProblem& problem, int64_t row, int64_t n, int64_t head,
                          float* beta) {
  for (int64_t i = 0; i < n; ++i) {
    beta[i] = problem.beta.data != nullptr ? problem.beta.row(row + i)[head] : 1.0f;
  }
}

// Gives `count` columns of a row of `to` scale * from, or adds it.
inline void StoreGradient(const Matrix& to, int64_t row, int64_t column, int64_t count, float scale,
                          const float* HWY_RESTRICT from) {
  float* HWY_RESTRICT target = to.row(row) + column;
  if (to.accumulate) {
    for (int64_t c = 0; c < count; ++c) target[c] += scale * from[c];
  } else {
    for (int64_t c = 0; c < count; ++c) target[c] = scale * from[c];
  }
}

// Gradients of v and skip in n rows from those of the output and of the residuals (du, with its
// strength). `work` is a row.
inline void StoreValueGradients(const OuterProductProblem& problem, const HeadPlace& place,
                                int64_t virtual_head, int64_t row, int64_t n, const float* d_out,
                                const float* du, float* work, const ChunkTaskGradients& gradients) {
  const int64_t columns = place.columns;
  if (gradients.skip != nullptr) {
    const float* v = problem.v.row(row) + place.column;
    for (int64_t i = 0; i < n; ++i) {
      gradients.skip[virtual_head] +=
          DotProduct(d_out + i * columns, v + i * problem.v.stride, columns);
    }
  }
  if (gradients.v.data == nullptr) return;
  const float skip = problem.skip != nullptr ? problem.skip[place.head] : 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < columns; ++c) {
      work[c] = du[i * columns + c] + skip * d_out[i * columns + c];
    }
    StoreGradient(gradients.v, row + i, place.column, columns, 1, work);
  }
}

// Gradients of q (before its scale) and k of a task in n rows.
inline void StoreKeyGradients(const OuterProductProblem& problem, const ChunkTask& task,
                              int64_t row, int64_t n, const float* dq, const float* dk,
                              const ChunkTaskGradients& gradients) {
  const int64_t key_dim = problem.key_dim, column = task.key_head * key_dim;
  for (int64_t i = 0; i < n; ++i) {
    if (gradients.q.data != nullptr) {
      StoreGradient(gradients.q, row + i, column, key_dim, problem.query_scale, dq + i * key_dim);
    }
    if (gradients.k.data != nullptr) {
      StoreGradient(gradients.k, row + i, column, key_dim, 1, dk + i * key_dim);
    }
  }
}

// Where the numbers of one head lie in a journal row [k | u | log_decay], of which the last is,
// with a decay per key channel, the decay itself.
struct RowPlace {
  RowPlace(const OuterProductProblem& problem, int64_t head)
      : k(head / (problem.value_heads / problem.key_heads) * problem.key_dim),
        u(problem.key_heads * problem.key_dim + head * problem.value_dim),
        decay(problem.key_heads * problem.key_dim + problem.value_heads * problem.value_dim +
              head * (problem.channel_decay ? problem.key_dim : 1)) {}

  int64_t k, u, decay;
};

// to[c] += sum_j factors[j] rows[j][place + c]
inline void WeightedRows(std::span<const float* const> rows, int64_t place, int64_t count,
                         const float* factors, float* HWY_RESTRICT to) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t c = 0;
  for (; c + lanes <= count; c += lanes) {
    auto sum = hn::LoadU(d, to + c);
    for (size_t j = 0; j < rows.size(); ++j) {
      sum = hn::MulAdd(hn::Set(d, factors[j]), hn::LoadU(d, rows[j] + place + c), sum);
    }
    hn::StoreU(sum, d, to + c);
  }
  if (c == count) return;
  const auto rest = static_cast<size_t>(count - c);
  auto sum = LoadPartial(d, rest, to + c);
  for (size_t j = 0; j < rows.size(); ++j) {
    sum = hn::MulAdd(hn::Set(d, factors[j]), LoadPartial(d, rest, rows[j] + place + c), sum);
  }
  StorePartial(d, rest, sum, to + c);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_OUTER_PRODUCT_STATE_INL_H_
