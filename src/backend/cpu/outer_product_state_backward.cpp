// Chunked backward pass of outer-product states, from the last chunk to the first. With U the
// written values, Z = U / beta, P_ij = (q_i . k_j) exp(G_i - G_j), dS the gradient of the state
// that leaves the chunk and S the one that entered it:
//   dU = P^T dO + exp(G_n - G_j) K dS
//   Y solves (I + diag(beta) L)^T Y = dU with the delta rule, else Y = dU
//   dbeta = rowsum(Y * Z), dR = beta * Y (the gradient of v), dP = tril(dO U^T), dL = -stril(dR
//   U^T), dS <- exp(G_n) dS + (exp(G_i) q)^T dO - (exp(G_i) k)^T dR
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/outer_product_state_backward.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target: included once for each instruction set.
#include "backend/cpu/outer_product_state-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Solves (I + diag(beta) L)^T Y = dU in place. `work` is a matrix of pairs.
inline void SolveTransposed(int64_t n, int64_t columns, const float* decayed_k_scores,
                            const float* beta, float* y, float* work) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      work[i * kChunk + j] = -beta[i] * decayed_k_scores[i * kChunk + j];
    }
  }
  for (int64_t start = (n - 1) / kBlock * kBlock; start >= 0; start -= kBlock) {
    const int64_t end = std::min(n, start + kBlock);
    if (end < n) {
      SmallMatmul(end - start, columns, n - end, work + end * kChunk + start, 1, kChunk,
                  y + end * columns, columns, y + start * columns, columns, true);
    }
    for (int64_t j = end - 2; j >= start; --j) {
      float* HWY_RESTRICT to = y + j * columns;
      for (int64_t i = j + 1; i < end; ++i) {
        const float factor = work[i * kChunk + j];
        const float* HWY_RESTRICT from = y + i * columns;
        for (int64_t c = 0; c < columns; ++c) to[c] += factor * from[c];
      }
    }
  }
}

// For the pairs of one matrix: gradient * decay is added to the gradient of the scores, and
// rows_minus_columns[t] += the sum of row t minus that of column t of gradient * decay * score,
// below the diagonal (on it the decay is 1 whatever the gates are).
template <bool kGated>
inline void PairGradients(int64_t n, const float* HWY_RESTRICT gradient,
                          const float* HWY_RESTRICT scores, const float* HWY_RESTRICT pairs,
                          bool diagonal, float sign, float* HWY_RESTRICT score_gradient,
                          float* HWY_RESTRICT column_sums, double* rows_minus_columns) {
  if (kGated) std::fill_n(column_sums, kChunk, 0.0f);
  for (int64_t i = 0; i < n; ++i) {
    const float* g = gradient + i * kChunk;
    const float* s = scores + i * kChunk;
    const float* e = pairs + i * kChunk;
    float* to = score_gradient + i * kChunk;
    float row_sum = 0;
    for (int64_t j = 0; j < i; ++j) {
      const float w = sign * g[j] * e[j];
      to[j] += w;
      if (kGated) {
        column_sums[j] += w * s[j];
      }
    }
    if (kGated) {
      for (int64_t j = 0; j < i; ++j) row_sum += g[j] * e[j] * s[j];
      rows_minus_columns[i] += sign * row_sum;
    }
    if (diagonal) to[i] += sign * g[i];
  }
  if (kGated) {
    for (int64_t j = 0; j < n; ++j) rows_minus_columns[j] -= column_sums[j];
  }
}

// The gradients of one task: its chunks from the last to the first, and of each chunk its heads.
template <bool kGated, bool kDeltaRule>
struct TaskBackward {
  TaskBackward(const OuterProductProblem& of, const ChunkTask& some, const ConstMatrix& grad,
               const OuterProductSaved& kept, const ChunkTaskGradients& to)
      : problem(of),
        task(some),
        segment(*some.segment),
        out_grad(grad),
        saved(kept),
        gradients(to),
        key_dim(of.key_dim),
        columns(of.value_dim / some.slices),
        state_size(key_dim * columns) {}

  void run() {
    TakeStates(problem, task, segment.state_out_gradient, state_grads);
    const int64_t chunks = (segment.length + kChunk - 1) / kChunk;
    for (chunk = chunks - 1; chunk >= 0; --chunk) {
      n = std::min(kChunk, segment.length - chunk * kChunk);
      row = segment.first_row + chunk * kChunk;
      first = chunk == 0 && segment.state_in == nullptr;
      last = chunk == chunks - 1 && segment.state_out_gradient == nullptr;
      take_keys();
      for (int64_t index = 0; index < task.heads; ++index) head_backward(index);
      give_keys();
    }
    AddStates(problem, task, state_grads, segment.state_in_gradient);
  }

  // Keys and queries of the chunk, which its heads share, and their scores.
  void take_keys() {
    const int64_t key_column = task.key_head * key_dim;
    PackRows(n, key_dim, problem.k.row(row) + key_column, problem.k.stride, 1, k);
    PackRows(n, key_dim, problem.q.row(row) + key_column, problem.q.stride, problem.query_scale, q);
    Transpose(n, key_dim, k, key_dim, k_t, kChunk);
    LowerScores(n, key_dim, q, k_t, q_scores);
    std::fill_n(dq_scores, kChunk * kChunk, 0.0f);
    if constexpr (kDeltaRule) {
      LowerScores(n, key_dim, k, k_t, k_scores);
      std::fill_n(dk_scores, kChunk * kChunk, 0.0f);
    }
    std::fill_n(dq, n * key_dim, 0.0f);
    std::fill_n(dk, n * key_dim, 0.0f);
  }

  void give_keys() {
    LowerProduct(n, key_dim, dq_scores, k, dq, true);
    LowerTransposedProduct(n, key_dim, dq_scores, q, dk, true);
    if constexpr (kDeltaRule) {
      LowerProduct(n, key_dim, dk_scores, k, dk, true);
      LowerTransposedProduct(n, key_dim, dk_scores, k, dk, true);
    }
    StoreKeyGradients(problem, task, row, n, dq, dk, gradients);
  }

  void head_backward(int64_t index) {
    const int64_t virtual_head = task.first_head + index;
    const HeadPlace place(problem, task, index);
    float* ds = state_grads + index * state_size;
    take_head(place);
    through_pairs();
    if (!last) through_leaving_state(ds);
    through_solve(virtual_head);
    StoreValueGradients(problem, place, virtual_head, row, n, d_out, du, work, gradients);
    if (!first) through_entering_state(place, ds);
    if (kGated && gradients.log_decay != nullptr) give_gates(virtual_head);
  }

  // What the forward pass had of a head: decays, written values and, with the delta rule,
  // residuals.
  void take_head(const HeadPlace& place) {
    ComputeDecay<kGated>(n, kGated ? problem.log_decay.row(row) + place.head : nullptr,
                         problem.log_decay.stride, decay);
    TakeStrengths(problem, row, n, place.head, beta);
    if (kDeltaRule) {
      const int64_t stride = problem.value_heads * problem.value_dim;
      PackRows(n, columns, saved.residuals + row * stride + place.column, stride, 1, z);
    } else {
      PackRows(n, columns, problem.v.row(row) + place.column, problem.v.stride, 1, z);
    }
    ScaleRows(n, columns, beta, z, u);
    Transpose(n, columns, u, columns, u_t, kChunk);
    PackRows(n, columns, out_grad.row(row) + place.column, out_grad.stride, 1, d_out);
    std::fill_n(suffix, n, 0.0);
    std::fill_n(prefix, n, 0.0);
    total_gradient = 0;
  }

  // du becomes the gradient of the written values through the outputs of the chunk.
  void through_pairs() {
    LowerScores(n, columns, d_out, u_t, pair_grads);
    PairGradients<kGated>(n, pair_grads, q_scores, decay.pairs, true, 1, dq_scores, column_sums,
                          suffix);
    LowerMultiply(n, q_scores, decay.pairs, lower);
    LowerTransposedProduct(n, columns, lower, d_out, du, false);
  }

  // The same through the state that leaves the chunk, whose gradient is ds.
  void through_leaving_state(const float* ds) {
    SmallMatmul(n, columns, key_dim, k, key_dim, 1, ds, columns, work, columns, false);
    for (int64_t j = 0; j < n; ++j) {
      const float factor = decay.to_end[j];
      for (int64_t c = 0; c < columns; ++c) {
        work[j * columns + c] *= factor;
        du[j * columns + c] += work[j * columns + c];
      }
      if (kGated) prefix[j] += DotProduct(work + j * columns, u + j * columns, columns);
    }
    ScaleRows(n, columns, decay.to_end, u, work);
    Transpose(key_dim, columns, ds, columns, state_t, key_dim);
    SmallMatmul(n, key_dim, columns, work, columns, 1, state_t, key_dim, dk, key_dim, true);
  }

  // du becomes the gradient of the residuals.
  void through_solve(int64_t virtual_head) {
    if constexpr (kDeltaRule) {
      LowerMultiply(n, k_scores, decay.pairs, lower);
      SolveTransposed(n, columns, lower, beta, du, pair_grads);
    }
    if (gradients.beta != nullptr) {
      for (int64_t i = 0; i < n; ++i) {
        gradients.beta[(row + i) * gradients.virtual_heads + virtual_head] =
            DotProduct(du + i * columns, z + i * columns, columns);
      }
    }
    ScaleRows(n, columns, beta, du, du);
    if constexpr (kDeltaRule) {
      LowerScores(n, columns, du, u_t, pair_grads);
      PairGradients<kGated>(n, pair_grads, k_scores, decay.pairs, false, -1, dk_scores, column_sums,
                            suffix);
    }
  }

  // ds becomes the gradient of the state that entered the chunk; zeros that enter the first chunk
  // need none.
  void through_entering_state(const HeadPlace& place, float* ds) {
    const float* from =
        saved.states +
        (segment.first_chunk + chunk) * problem.value_heads * key_dim * problem.value_dim +
        place.state;
    PackRows(key_dim, columns, from, problem.value_dim, 1, state);
    Transpose(key_dim, columns, state, columns, state_t, key_dim);
    if (kGated && !last) {
      total_gradient += decay.total * DotProduct(ds, state, state_size);
    }
    ScaleRows(n, columns, decay.from_start, d_out, d_out);
    look_back(d_out, q, dq);
    if constexpr (kDeltaRule) {
      ScaleRows(n, columns, decay.from_start, du, du);
      for (int64_t e = 0; e < n * columns; ++e) du[e] = -du[e];
      look_back(du, k, dk);
    }
    if (kGated && !last) {
      const float total = decay.total;
      for (int64_t e = 0; e < state_size; ++e) ds[e] *= total;
    }
    SmallMatmul(key_dim, columns, n, q, 1, key_dim, d_out, columns, ds, columns, true);
    if constexpr (kDeltaRule) {
      SmallMatmul(key_dim, columns, n, k, 1, key_dim, du, columns, ds, columns, true);
    }
  }

  // For rows that read the entering state by `keys`: from the gradient of what they read.
  void look_back(const float* read_grad, const float* keys, float* key_grad) {
    SmallMatmul(n, key_dim, columns, read_grad, columns, 1, state_t, key_dim, key_work, key_dim,
                false);
    for (int64_t i = 0; i < n; ++i) {
      const float* add = key_work + i * key_dim;
      AddTo(key_dim, add, key_grad + i * key_dim);
      if (kGated) suffix[i] += DotProduct(keys + i * key_dim, add, key_dim);
    }
  }

  // A gate acts on what flows from rows before it to rows from it on.
  void give_gates(int64_t virtual_head) {
    double sum = total_gradient;
    for (int64_t j = 0; j < n; ++j) {
      const double own = prefix[j];
      prefix[j] = sum;
      sum += own;
    }
    sum = 0;
    for (int64_t i = n - 1; i >= 0; --i) {
      sum += suffix[i];
      gradients.log_decay[(row + i) * gradients.virtual_heads + virtual_head] =
          static_cast<float>(sum + prefix[i]);
    }
  }

  const OuterProductProblem& problem;
  const ChunkTask& task;
  const OuterProductSegment& segment;
  const ConstMatrix& out_grad;
  const OuterProductSaved& saved;
  const ChunkTaskGradients& gradients;
  int64_t key_dim, columns, state_size;

  // The chunk, of n rows from `row` on.
  int64_t chunk = 0, n = 0, row = 0;
  bool first = false, last = false;  // zeros enter it; nothing is asked of what leaves it

  Scratch scratch;
  float* state_grads = scratch.take(task.heads * state_size);
  float* state = scratch.take(state_size);
  float* state_t = scratch.take(state_size);
  float* k = scratch.take(kChunk * key_dim);
  float* q = scratch.take(kChunk * key_dim);
  float* k_t = scratch.take(kChunk * key_dim);
  float* dk = scratch.take(kChunk * key_dim);
  float* dq = scratch.take(kChunk * key_dim);
  float* key_work = scratch.take(kChunk * key_dim);
  float* q_scores = scratch.take(kChunk * kChunk);
  float* k_scores = scratch.take(kChunk * kChunk);
  float* dq_scores = scratch.take(kChunk * kChunk);
  float* dk_scores = scratch.take(kChunk * kChunk);
  float* lower = scratch.take(kChunk * kChunk);
  float* pair_grads = scratch.take(kChunk * kChunk);
  float* z = scratch.take(kChunk * columns);
  float* u = scratch.take(kChunk * columns);
  float* u_t = scratch.take(kChunk * columns);
  float* d_out = scratch.take(kChunk * columns);
  float* du = scratch.take(kChunk * columns);
  float* work = scratch.take(kChunk * columns);
  float* beta = scratch.take(kChunk);
  float* column_sums = scratch.take(kChunk);
  ChunkDecay decay{scratch};
  // Gradients of the gates up to, or after, a row, and of all together.
  double suffix[kChunk], prefix[kChunk], total_gradient = 0;
};

template <bool kGated, bool kDeltaRule>
void BackwardTask(const OuterProductProblem& problem, const ChunkTask& task,
                  const ConstMatrix& out_grad, const OuterProductSaved& saved,
                  const ChunkTaskGradients& gradients) {
  TaskBackward<kGated, kDeltaRule>(problem, task, out_grad, saved, gradients).run();
}

void BackwardKinds(const OuterProductProblem& problem, const ChunkTask& task,
                   const ConstMatrix& out_grad, const OuterProductSaved& saved,
                   const ChunkTaskGradients& gradients) {
  const bool gated = problem.log_decay.data != nullptr;
  const auto kind =
      gated ? (problem.delta_rule ? BackwardTask<true, true> : BackwardTask<true, false>)
            : (problem.delta_rule ? BackwardTask<false, true> : BackwardTask<false, false>);
  kind(problem, task, out_grad, saved, gradients);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(BackwardKinds);

void chunk_backward_task(const OuterProductProblem& problem, const ChunkTask& task,
                         const ConstMatrix& out_grad, const OuterProductSaved& saved,
                         const ChunkTaskGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(BackwardKinds)(problem, task, out_grad, saved, gradients);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
