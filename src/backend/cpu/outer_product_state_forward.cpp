// Chunked forward pass of outer-product states.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/outer_product_state_forward.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target: included once for each instruction set.
#include "backend/cpu/outer_product_state-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Solves (I + L diag(beta)) Z = R in place, R [n, columns], L strictly lower with
// L_ij = (k_i . k_j) exp(G_i - G_j). `work` is a matrix of pairs.
inline void SolveResiduals(int64_t n, int64_t columns, const float* k_scores, const float* pairs,
                           const float* beta, float* z, float* work) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      work[i * kChunk + j] = -k_scores[i * kChunk + j] * pairs[i * kChunk + j] * beta[j];
    }
  }
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t end = std::min(n, start + kBlock);
    if (start > 0) {
      SmallMatmul(end - start, columns, start, work + start * kChunk, kChunk, 1, z, columns,
                  z + start * columns, columns, true);
    }
    for (int64_t i = start + 1; i < end; ++i) {
      float* HWY_RESTRICT to = z + i * columns;
      for (int64_t j = start; j < i; ++j) {
        const float factor = work[i * kChunk + j];
        const float* HWY_RESTRICT from = z + j * columns;
        for (int64_t c = 0; c < columns; ++c) to[c] += factor * from[c];
      }
    }
  }
}

template <bool kGated, bool kDeltaRule>
void ForwardTask(const OuterProductProblem& problem, const ChunkTask& task, const Matrix& out,
                 const OuterProductSaved& saved) {
  const OuterProductSegment& segment = *task.segment;
  const int64_t key_dim = problem.key_dim, value_dim = problem.value_dim;
  const int64_t columns = value_dim / task.slices, state_size = key_dim * columns;
  Scratch scratch;
  float* states = scratch.take(task.heads * state_size);
  float* k = scratch.take(kChunk * key_dim);
  float* q = scratch.take(kChunk * key_dim);
  float* k_t = scratch.take(kChunk * key_dim);
  float* q_scores = scratch.take(kChunk * kChunk);
  float* k_scores = scratch.take(kChunk * kChunk);
  float* lower = scratch.take(kChunk * kChunk);
  float* v = scratch.take(kChunk * columns);
  float* z = scratch.take(kChunk * columns);  // what is written, before its strength
  float* u = scratch.take(kChunk * columns);
  float* o = scratch.take(kChunk * columns);
  float* beta = scratch.take(kChunk);
  ChunkDecay decay(scratch);

  TakeStates(problem, task, segment.state_in, states);
  for (int64_t start = 0; start < segment.length; start += kChunk) {
    const int64_t n = std::min(kChunk, segment.length - start);
    const int64_t row = segment.first_row + start;
    const int64_t chunk = segment.first_chunk + start / kChunk;
    const bool blank = start == 0 && segment.state_in == nullptr;  // the states are zero
    const int64_t key_column = task.key_head * key_dim;
    PackRows(n, key_dim, problem.k.row(row) + key_column, problem.k.stride, 1, k);
    PackRows(n, key_dim, problem.q.row(row) + key_column, problem.q.stride, problem.query_scale, q);
    Transpose(n, key_dim, k, key_dim, k_t, kChunk);
    LowerScores(n, key_dim, q, k_t, q_scores);
    if constexpr (kDeltaRule) LowerScores(n, key_dim, k, k_t, k_scores);

    for (int64_t index = 0; index < task.heads; ++index) {
      const HeadPlace place(problem, task, index);
      const int64_t head = place.head, column = place.column;
      float* state = states + index * state_size;
      ComputeDecay<kGated>(n, kGated ? problem.log_decay.row(row) + head : nullptr,
                           problem.log_decay.stride, decay);
      TakeStrengths(problem, row, n, head, beta);
      PackRows(n, columns, problem.v.row(row) + column, problem.v.stride, 1, v);
      if (saved.states != nullptr) {
        StoreState(problem, place, state,
                   saved.states + chunk * problem.value_heads * key_dim * value_dim);
      }

      std::memcpy(z, v, static_cast<size_t>(n * columns) * sizeof(float));
      if constexpr (kDeltaRule) {
        if (!blank) {
          SmallMatmul(n, columns, key_dim, k, key_dim, 1, state, columns, o, columns, false);
          for (int64_t i = 0; i < n; ++i) {
            for (int64_t c = 0; c < columns; ++c) {
              z[i * columns + c] -= decay.from_start[i] * o[i * columns + c];
            }
          }
        }
        SolveResiduals(n, columns, k_scores, decay.pairs, beta, z, lower);
        if (saved.residuals != nullptr) StoreResiduals(problem, place, row, n, z, saved.residuals);
      }
      ScaleRows(n, columns, beta, z, u);

      if (!blank) {
        SmallMatmul(n, columns, key_dim, q, key_dim, 1, state, columns, o, columns, false);
        ScaleRows(n, columns, decay.from_start, o, o);
      }
      LowerMultiply(n, q_scores, decay.pairs, lower);
      LowerProduct(n, columns, lower, u, o, !blank);
      const float skip = problem.skip != nullptr ? problem.skip[head] : 0.0f;
      for (int64_t i = 0; i < n; ++i) {
        float* HWY_RESTRICT to = out.row(row + i) + column;
        for (int64_t c = 0; c < columns; ++c) {
          to[c] = o[i * columns + c] + skip * v[i * columns + c];
        }
      }

      ScaleRows(n, columns, decay.to_end, u, u);
      if (kGated && !blank) {
        for (int64_t e = 0; e < state_size; ++e) state[e] *= decay.total;
      }
      SmallMatmul(key_dim, columns, n, k, 1, key_dim, u, columns, state, columns, true);
    }
  }
  StoreFinalStates(problem, task, states);
}

void ForwardKinds(const OuterProductProblem& problem, const ChunkTask& task, const Matrix& out,
                  const OuterProductSaved& saved) {
  const bool gated = problem.log_decay.data != nullptr;
  const auto kind =
      gated ? (problem.delta_rule ? ForwardTask<true, true> : ForwardTask<true, false>)
            : (problem.delta_rule ? ForwardTask<false, true> : ForwardTask<false, false>);
  kind(problem, task, out, saved);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(ForwardKinds);

void chunk_forward_task(const OuterProductProblem& problem, const ChunkTask& task,
                        const Matrix& out, const OuterProductSaved& saved) {
  HWY_DYNAMIC_DISPATCH(ForwardKinds)(problem, task, out, saved);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
