// Chunked backward pass of diagonal-plus-rank-one states, from the last chunk to the first. With
// the names of diagonal_plus_rank_one-inl.h, dS the gradient of the state that leaves the chunk and
// S the one that entered it:
//   [dV; dZ] = to_end dS + (the scores of q)^T dO
//   Y solves (I - A_b)^T Y = dZ with A = [A_k, A_b] the scores of a;  dV += A_k^T Y
//   the scores' gradients are [Y; dO] [V; Z]^T, those of from_start [Y; dO] S^T and those of to_end
//   [V; Z] dS^T
//   dS <- F_n dS + from_start^T [Y; dO]
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/diagonal_plus_rank_one_backward.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target: included once for each instruction set.
#include "backend/cpu/diagonal_plus_rank_one-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Gradients of the rows of a chunk, [n, width].
struct RowGradients {
  RowGradients(Scratch& scratch, int64_t width)
      : q(scratch.take(kRankOneChunk * width)),
        k(scratch.take(kRankOneChunk * width)),
        a(scratch.take(kRankOneChunk * width)),
        b(scratch.take(kRankOneChunk * width)),
        log_decay(scratch.take(kRankOneChunk * width)) {}

  float *q, *k, *a, *b, *log_decay;
};

// Solves (I - A)^T Y = dZ in place, A strictly lower in rows of 2 n.
inline void SolveTransposed(int64_t n, int64_t columns, const float* scores, float* y) {
  for (int64_t j = n - 2; j >= 0; --j) {
    float* HWY_RESTRICT to = y + j * columns;
    for (int64_t i = j + 1; i < n; ++i) {
      const float factor = scores[i * 2 * n + j];
      const float* HWY_RESTRICT from = y + i * columns;
      for (int64_t c = 0; c < columns; ++c) to[c] += factor * from[c];
    }
  }
}

// Through the pairs of rows i > j, channel by channel: g [2 n, 2 n] are the scores' gradients.
// Sets the gradients of q, k, a and b, without what their own row's pair gives; and those of the
// log-decays to what acts up to a row, to be summed from the end.
inline void PairGradients(const RankOneRows& rows, const float* g, const RowGradients& to) {
  const FloatTag d;
  const int64_t n = rows.n, width = rows.width;
  std::fill_n(to.q, n * width, 0.0f);
  std::fill_n(to.a, n * width, 0.0f);
  ForEachKeyVector(width, [&](int64_t c) HWY_ATTR {
    for (int64_t j = 0; j < n; ++j) {
      const auto k = hn::Load(d, rows.k + j * width + c), b = hn::Load(d, rows.b + j * width + c);
      auto decay = hn::Set(d, 1.0f);  // D(i-1, j)
      auto dk = hn::Zero(d), db = hn::Zero(d);
      for (int64_t i = j + 1; i < n; ++i) {
        const int64_t at = i * width + c;
        const float *of_a = g + i * 2 * n + j, *of_q = g + (n + i) * 2 * n + j;
        const auto ak = hn::Set(d, of_a[0]), ab = hn::Set(d, of_a[n]);
        const auto qk = hn::Set(d, of_q[0]), qb = hn::Set(d, of_q[n]);
        const auto key = hn::Mul(k, decay), update = hn::Mul(b, decay);
        const auto w = hn::Load(d, rows.w + at), a = hn::Load(d, rows.a + at);
        const auto q = hn::Mul(hn::Load(d, rows.q + at), w);
        auto da = hn::Load(d, to.a + at), dq = hn::Load(d, to.q + at);
        da = hn::MulAdd(ab, update, hn::MulAdd(ak, key, da));
        dq = hn::MulAdd(qb, update, hn::MulAdd(qk, key, dq));
        hn::Store(da, d, to.a + at);
        hn::Store(dq, d, to.q + at);  // before the decay of row i
        dk = hn::MulAdd(decay, hn::MulAdd(qk, q, hn::Mul(ak, a)), dk);
        db = hn::MulAdd(decay, hn::MulAdd(qb, q, hn::Mul(ab, a)), db);
        decay = hn::Mul(decay, w);
      }
      hn::Store(dk, d, to.k + j * width + c);
      hn::Store(db, d, to.b + j * width + c);
    }
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = i * width + c;
      const auto dq = hn::Mul(hn::Load(d, to.q + at), hn::Load(d, rows.w + at));
      hn::Store(dq, d, to.q + at);
      // What a reads has the decays up to the row before.
      if (i > 0) {
        const auto before = hn::Load(d, to.log_decay + at - width);
        const auto read = hn::Mul(hn::Load(d, rows.a + at), hn::Load(d, to.a + at));
        hn::Store(hn::Add(before, read), d, to.log_decay + at - width);
      }
      auto sum = hn::Mul(hn::Load(d, rows.q + at), dq);
      sum = hn::NegMulAdd(hn::Load(d, rows.k + at), hn::Load(d, to.k + at), sum);
      sum = hn::NegMulAdd(hn::Load(d, rows.b + at), hn::Load(d, to.b + at), sum);
      hn::Store(sum, d, to.log_decay + at);
    }
  });
}

// Through each row's own pair, on which nothing decays.
inline void OwnGradients(const RankOneRows& rows, const float* g, const RowGradients& to) {
  const FloatTag d;
  const int64_t n = rows.n, width = rows.width;
  for (int64_t i = 0; i < n; ++i) {
    const float* own = g + (n + i) * 2 * n + i;
    const auto qk = hn::Set(d, own[0]), qb = hn::Set(d, own[n]);
    ForEachKeyVector(width, [&](int64_t c) HWY_ATTR {
      const int64_t at = i * width + c;
      const auto q = hn::Load(d, rows.q + at);
      auto dq = hn::MulAdd(qk, hn::Load(d, rows.k + at), hn::Load(d, to.q + at));
      dq = hn::MulAdd(qb, hn::Load(d, rows.b + at), dq);
      hn::Store(dq, d, to.q + at);
      hn::Store(hn::MulAdd(qk, q, hn::Load(d, to.k + at)), d, to.k + at);
      hn::Store(hn::MulAdd(qb, q, hn::Load(d, to.b + at)), d, to.b + at);
    });
  }
}

// Through the state that entered the chunk. g [2 n, width]: the gradient of from_start.
inline void EntryGradients(const RankOneRows& rows, const float* g, const RowGradients& to) {
  const int64_t n = rows.n, width = rows.width;
  ForEachKeyVector(width, [&](int64_t c) HWY_ATTR {
    const FloatTag d;
    auto decay = hn::Set(d, 1.0f);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = i * width + c, of_q = (n + i) * width + c;
      const auto read = hn::Load(d, g + at), query = hn::Load(d, g + of_q);
      hn::Store(hn::MulAdd(decay, read, hn::Load(d, to.a + at)), d, to.a + at);
      if (i > 0) {
        const auto before = hn::Load(d, to.log_decay + at - width);
        hn::Store(hn::MulAdd(hn::Load(d, rows.from_start + at), read, before), d,
                  to.log_decay + at - width);
      }
      decay = hn::Mul(decay, hn::Load(d, rows.w + at));
      hn::Store(hn::MulAdd(decay, query, hn::Load(d, to.q + at)), d, to.q + at);
      const auto own = hn::Load(d, to.log_decay + at);
      hn::Store(hn::MulAdd(hn::Load(d, rows.from_start + of_q), query, own), d, to.log_decay + at);
    }
  });
}

// Sums the log-decays' gradients, and adds what goes through the state that leaves the chunk. g
// [2 n, width]: the gradient of to_end; null: nothing goes. total [width]: the gradient of the
// logarithm of F_n; null: none.
inline void DecayGradients(const RankOneRows& rows, const float* g, const float* total,
                           const RowGradients& to) {
  const int64_t n = rows.n, width = rows.width;
  ForEachKeyVector(width, [&](int64_t c) HWY_ATTR {
    const FloatTag d;
    auto sum = hn::Zero(d);
    for (int64_t i = n - 1; i >= 0; --i) {
      sum = hn::Add(sum, hn::Load(d, to.log_decay + i * width + c));
      hn::Store(sum, d, to.log_decay + i * width + c);
    }
    if (g == nullptr) return;
    sum = total != nullptr ? hn::Load(d, total + c) : hn::Zero(d);
    for (int64_t j = 0; j < n; ++j) {
      const int64_t at = j * width + c, of_b = (n + j) * width + c;
      hn::Store(hn::Add(sum, hn::Load(d, to.log_decay + at)), d, to.log_decay + at);
      sum = hn::MulAdd(hn::Load(d, rows.to_end + at), hn::Load(d, g + at), sum);
      sum = hn::MulAdd(hn::Load(d, rows.to_end + of_b), hn::Load(d, g + of_b), sum);
    }
    auto decay = hn::Set(d, 1.0f);
    for (int64_t j = n - 1; j >= 0; --j) {
      const int64_t at = j * width + c, of_b = (n + j) * width + c;
      hn::Store(hn::MulAdd(decay, hn::Load(d, g + at), hn::Load(d, to.k + at)), d, to.k + at);
      hn::Store(hn::MulAdd(decay, hn::Load(d, g + of_b), hn::Load(d, to.b + at)), d, to.b + at);
      decay = hn::Mul(decay, hn::Load(d, rows.w + at));
    }
  });
}

inline void StoreRows(const Matrix& to, int64_t row, int64_t column, int64_t n, int64_t count,
                      float scale, const float* from, int64_t stride) {
  if (to.data == nullptr) return;
  for (int64_t i = 0; i < n; ++i) {
    const float* HWY_RESTRICT source = from + i * stride;
    float* HWY_RESTRICT target = to.row(row + i) + column;
    if (to.accumulate) {
      for (int64_t c = 0; c < count; ++c) target[c] += scale * source[c];
    } else {
      for (int64_t c = 0; c < count; ++c) target[c] = scale * source[c];
    }
  }
}

void BackwardTask(const RankOneProblem& problem, const RankOneTask& task,
                  const ConstMatrix& out_grad, const RankOneSaved& saved,
                  const RankOneGradients& gradients) {
  constexpr int64_t kChunks = kRankOneSpan / kRankOneChunk;
  const RankOneSegment& segment = *task.segment;
  const int64_t key_dim = problem.key_dim, value_dim = problem.value_dim;
  const int64_t key_column = task.head * key_dim, column = task.head * value_dim;
  const int64_t size = key_dim * value_dim, z_row = problem.heads * value_dim;
  Scratch scratch;
  RankOneRows rows(scratch, key_dim);
  const int64_t width = rows.width;
  const RowGradients grads(scratch, width);
  float* states = scratch.take(kChunks * size);
  float* ds = scratch.take(size);
  float* transposed = scratch.take(width * value_dim);  // of a state: [value_dim, width]
  float* values = scratch.take(2 * kRankOneChunk * value_dim);
  float* values_t = scratch.take(2 * kRankOneChunk * value_dim);
  float* value_grads = scratch.take(2 * kRankOneChunk * value_dim);  // of V, then Z
  float* outer = scratch.take(2 * kRankOneChunk * value_dim);        // Y, then dO
  float* score_grads = scratch.take(4 * kRankOneChunk * kRankOneChunk);
  float* start_grads = scratch.take(2 * kRankOneChunk * width);
  float* end_grads = scratch.take(2 * kRankOneChunk * width);
  float* total = scratch.take(width);
  std::fill_n(transposed, width * value_dim, 0.0f);
  std::fill_n(start_grads, 2 * kRankOneChunk * width, 0.0f);
  std::fill_n(end_grads, 2 * kRankOneChunk * width, 0.0f);
  std::fill_n(total, width, 0.0f);
  const int64_t state_place = task.head * size;  // in the states of all heads
  if (segment.state_out_gradient != nullptr) {
    PackRows(1, size, segment.state_out_gradient + state_place, size, 1, ds);
  } else {
    std::fill_n(ds, size, 0.0f);
  }
  const bool from_zeros = segment.state_in == nullptr;

  const auto load_values = [&](int64_t row, int64_t n) {
    PackRows(n, value_dim, problem.v.row(row) + column, problem.v.stride, 1, values);
    PackRows(n, value_dim, saved.z + row * z_row + column, z_row, 1, values + n * value_dim);
  };
  const int64_t spans = (segment.length + kRankOneSpan - 1) / kRankOneSpan;
  for (int64_t span = spans - 1; span >= 0; --span) {
    const int64_t end = std::min(kRankOneSpan, segment.length - span * kRankOneSpan);
    const int64_t chunks = (end + kRankOneChunk - 1) / kRankOneChunk;
    const int64_t first_row = segment.first_row + span * kRankOneSpan;
    PackRows(1, size,
             saved.states + ((segment.first_span + span) * problem.heads + task.head) * size, size,
             1, states);
    for (int64_t chunk = 0; chunk + 1 < chunks; ++chunk) {
      const int64_t row = first_row + chunk * kRankOneChunk;
      LoadWrites(problem, task.head, row, kRankOneChunk, rows);
      load_values(row, kRankOneChunk);
      AdvanceState(rows, key_dim, value_dim, values, span == 0 && chunk == 0 && from_zeros,
                   states + chunk * size, states + (chunk + 1) * size);
    }

    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const int64_t n = std::min(kRankOneChunk, end - chunk * kRankOneChunk);
      const int64_t row = first_row + chunk * kRankOneChunk;
      const bool first = span == 0 && chunk == 0 && from_zeros;
      const bool last =
          span == spans - 1 && chunk == chunks - 1 && segment.state_out_gradient == nullptr;
      const float* state = states + chunk * size;
      LoadWrites(problem, task.head, row, n, rows);
      LoadReads(problem, task.head, row, rows);
      PairScores(rows);
      load_values(row, n);
      float* d_out = outer + n * value_dim;
      PackRows(n, value_dim, out_grad.row(row) + column, out_grad.stride, 1, d_out);

      if (!last) {
        SmallMatmul(2 * n, value_dim, key_dim, rows.to_end, width, 1, ds, value_dim, value_grads,
                    value_dim, false);
      }
      SmallMatmul(2 * n, value_dim, n, rows.scores + 2 * n * n, 1, 2 * n, d_out, value_dim,
                  value_grads, value_dim, !last);
      PackRows(n, value_dim, value_grads + n * value_dim, value_dim, 1, outer);
      SolveTransposed(n, value_dim, rows.scores + n, outer);
      SmallMatmul(n, value_dim, n, rows.scores, 1, 2 * n, outer, value_dim, value_grads, value_dim,
                  true);
      StoreRows(gradients.v, row, column, n, value_dim, 1, value_grads, value_dim);

      Transpose(2 * n, value_dim, values, value_dim, values_t, 2 * n);
      SmallMatmul(2 * n, 2 * n, value_dim, outer, value_dim, 1, values_t, 2 * n, score_grads, 2 * n,
                  false);
      PairGradients(rows, score_grads, grads);
      OwnGradients(rows, score_grads, grads);
      if (!first) {
        Transpose(key_dim, value_dim, state, value_dim, transposed, width);
        SmallMatmul(2 * n, key_dim, value_dim, outer, value_dim, 1, transposed, width, start_grads,
                    width, false);
        EntryGradients(rows, start_grads, grads);
      }
      if (!last) {
        Transpose(key_dim, value_dim, ds, value_dim, transposed, width);
        SmallMatmul(2 * n, key_dim, value_dim, values, value_dim, 1, transposed, width, end_grads,
                    width, false);
        for (int64_t c = 0; c < key_dim && !first; ++c) {
          total[c] =
              rows.total[c] * DotProduct(ds + c * value_dim, state + c * value_dim, value_dim);
        }
      }
      DecayGradients(rows, last ? nullptr : end_grads, first ? nullptr : total, grads);
      StoreRows(gradients.q, row, key_column, n, key_dim, problem.query_scale, grads.q, width);
      StoreRows(gradients.log_decay, row, key_column, n, key_dim, 1, grads.log_decay, width);
      StoreRows(gradients.k, row, key_column, n, key_dim, 1, grads.k, width);
      StoreRows(gradients.a, row, key_column, n, key_dim, 1, grads.a, width);
      StoreRows(gradients.b, row, key_column, n, key_dim, 1, grads.b, width);

      if (first) break;
      if (!last) ScaleRows(key_dim, value_dim, rows.total, ds, ds);
      SmallMatmul(key_dim, value_dim, 2 * n, rows.from_start, 1, width, outer, value_dim, ds,
                  value_dim, !last);
    }
  }
  if (segment.state_in_gradient == nullptr) return;
  float* HWY_RESTRICT to = segment.state_in_gradient + state_place;
  for (int64_t e = 0; e < size; ++e) to[e] += ds[e];
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(BackwardTask);

void rank_one_backward_task(const RankOneProblem& problem, const RankOneTask& task,
                            const ConstMatrix& out_grad, const RankOneSaved& saved,
                            const RankOneGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(BackwardTask)(problem, task, out_grad, saved, gradients);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
