// Chunked backward pass of outer-product states with a decay per key channel, from the last block
// to the first. With L_i the sums of log-decays from the start of a block of n rows, S the state
// that enters it, S' the one that leaves it, dS and dS' their gradients, U the written values, Z =
// U / beta, P_ij = sum_c q_ic k_jc exp(L_ic - L_jc) and K_ij likewise for k_i below the diagonal:
//   dU = P^T dO + (exp(L_n - L) k) dS'
//   Y solves (I + diag(beta) K)^T Y = dU with the delta rule, else Y = dU
//   dbeta = rowsum(Y * Z), dR = beta * Y (the gradient of v), dP = tril(dO U^T), dK = -stril(dR
//   U^T) dS = exp(L_n) dS' + (exp(L) q)^T dO - (exp(L) k)^T dR
// A row looks back as q (and, to erase, as k) and is looked back at as k; of each way the gradient
// of its L is the number times its gradient. S' depends on L_n too: rowsum(dS' * S').
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/outer_product_state_channels_backward.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target: included once for each instruction set.
#include "backend/cpu/outer_product_state_channels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kBlocks = kChunk / kBlock;

// From the gradients of scores below the diagonal (zeros on it and above), rows of kBlock:
// dx_i += sum_j gradient_ij k_j exp(L_i - L_j), dk_j += sum_i gradient_ij x_i exp(L_i - L_j).
// `work` [kBlock, key_dim].
inline void BlockScoreGradients(int64_t n, const BlockDecay& decay, const BlockKeys& keys,
                                const float* x, const float* gradient, float* dx, float* dk,
                                float* work) {
  const int64_t key_dim = decay.key_dim, near = decay.near, size = near * key_dim;
  SmallMatmul(near, key_dim, near, gradient, kBlock, 1, keys.down, key_dim, work, key_dim, false);
  for (int64_t e = 0; e < size; ++e) dx[e] += decay.up[e] * work[e];
  Multiply(size, x, decay.up, keys.up);
  SmallMatmul(near, key_dim, near, gradient, 1, kBlock, keys.up, key_dim, work, key_dim, false);
  for (int64_t e = 0; e < size; ++e) dk[e] += decay.down[e] * work[e];
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = near; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      const auto g = hn::Set(d, gradient[i * kBlock + j]);
      for (int64_t c = 0; c < key_dim; c += lanes) {
        const int64_t left = key_dim - c, at_i = i * key_dim + c, at_j = j * key_dim + c;
        const auto fall =
            hn::Sub(LoadPart(d, decay.sums + at_i, left), LoadPart(d, decay.sums + at_j, left));
        const auto factor = hn::Mul(g, Exp(d, fall));
        const auto new_dx =
            hn::MulAdd(factor, LoadPart(d, keys.k + at_j, left), LoadPart(d, dx + at_i, left));
        StorePart(d, new_dx, dx + at_i, left);
        const auto new_dk =
            hn::MulAdd(factor, LoadPart(d, x + at_i, left), LoadPart(d, dk + at_j, left));
        StorePart(d, new_dk, dk + at_j, left);
      }
    }
  }
}

// gradient[i, j] = sign x_i . u_j below the diagonal, zeros elsewhere; diagonal[i] = x_i . u_i.
inline void PairProducts(int64_t n, int64_t columns, float sign, const float* x, const float* u_t,
                         float* gradient, float* diagonal) {
  SmallMatmul(n, n, columns, x, columns, 1, u_t, kBlock, gradient, kBlock, false);
  for (int64_t i = 0; i < n; ++i) {
    float* row = gradient + i * kBlock;
    diagonal[i] = row[i];
    for (int64_t j = 0; j < i; ++j) row[j] *= sign;
    std::fill(row + i, row + kBlock, 0.0f);
  }
}

// The gradients of one task: its chunks from the last to the first, of each chunk its heads, and of
// each head the blocks from the last to the first.
template <bool kDeltaRule>
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
      rows = std::min(kChunk, segment.length - chunk * kChunk);
      first_row = segment.first_row + chunk * kChunk;
      nothing_after = chunk == chunks - 1 && segment.state_out_gradient == nullptr;
      const int64_t key_column = task.key_head * key_dim;
      PackRows(rows, key_dim, problem.k.row(first_row) + key_column, problem.k.stride, 1, k);
      PackRows(rows, key_dim, problem.q.row(first_row) + key_column, problem.q.stride,
               problem.query_scale, q);
      std::fill_n(dq, rows * key_dim, 0.0f);
      std::fill_n(dk, rows * key_dim, 0.0f);
      for (int64_t index = 0; index < task.heads; ++index) head_backward(index);
      StoreKeyGradients(problem, task, first_row, rows, dq, dk, gradients);
    }
    AddStates(problem, task, state_grads, segment.state_in_gradient);
  }

  void head_backward(int64_t index) {
    virtual_head = task.first_head + index;
    ds = state_grads + index * state_size;
    const HeadPlace place(problem, task, index);
    const int64_t blocks = (rows + kBlock - 1) / kBlock;
    take_head(place, blocks);
    for (int64_t block = blocks - 1; block >= 0; --block) {
      const bool first = chunk == 0 && block == 0 && segment.state_in == nullptr;
      const bool last = nothing_after && block == blocks - 1;
      take_block(place, block);
      through_pairs();
      if (!last) through_leaving_state(states + (block + 1) * state_size);
      through_solve();
      StoreValueGradients(problem, place, virtual_head, row, n, d_out, du, work, gradients);
      if (!first) through_entering_state(states + block * state_size, last);
      AddTo(n * key_dim, as_query, dq + start * key_dim);
      AddTo(n * key_dim, as_eraser, dk + start * key_dim);
      AddTo(n * key_dim, as_key, dk + start * key_dim);
      if (gradients.log_decay != nullptr) give_gates(place.head);
    }
  }

  // What the forward pass had of a head: written values, residuals and states.
  void take_head(const HeadPlace& place, int64_t blocks) {
    const int64_t value_dim = problem.value_dim;
    TakeStrengths(problem, first_row, rows, place.head, beta);
    if (kDeltaRule) {
      const int64_t stride = problem.value_heads * value_dim;
      PackRows(rows, columns, saved.residuals + first_row * stride + place.column, stride, 1, z);
    } else {
      PackRows(rows, columns, problem.v.row(first_row) + place.column, problem.v.stride, 1, z);
    }
    ScaleRows(rows, columns, beta, z, u);
    PackRows(key_dim, columns,
             saved.states +
                 (segment.first_chunk + chunk) * problem.value_heads * key_dim * value_dim +
                 place.state,
             value_dim, 1, states);
    // The state after the last block of all is not needed where its gradient is zero.
    for (int64_t block = 0; block < blocks - (nothing_after ? 1 : 0); ++block) {
      choose_rows(place, block);
      float* next = states + (block + 1) * state_size;
      std::copy_n(states + block * state_size, state_size, next);
      AdvanceState(n, decay, k + start * key_dim, u + start * columns, columns, false, next,
                   key_work);
    }
  }

  // The rows of a block, and their decays.
  void choose_rows(const HeadPlace& place, int64_t block) {
    start = block * kBlock;
    n = std::min(kBlock, rows - start);
    row = first_row + start;
    ComputeBlockDecay(n, problem.log_decay.row(row) + place.head * key_dim,
                      problem.log_decay.stride, decay);
  }

  void take_block(const HeadPlace& place, int64_t block) {
    choose_rows(place, block);
    own_q = q + start * key_dim;
    own_k = k + start * key_dim;
    own_u = u + start * columns;
    SetKeys(decay, own_k, keys);
    Transpose(n, columns, own_u, columns, u_t, kBlock);
    PackRows(n, columns, out_grad.row(row) + place.column, out_grad.stride, 1, d_out);
    for (float* sums : {as_query, as_eraser, as_key, gates}) std::fill_n(sums, n * key_dim, 0.0f);
  }

  // du becomes the gradient of the written values through the outputs of the block. The diagonal,
  // where no decay is, is added apart.
  void through_pairs() {
    BlockScores(n, decay, keys, own_q, true, q_scores);
    PairProducts(n, columns, 1, d_out, u_t, pair_grads, diagonal);
    BlockScoreGradients(n, decay, keys, own_q, pair_grads, as_query, as_key, key_work);
    SmallMatmul(n, columns, n, q_scores, 1, kBlock, d_out, columns, du, columns, false);
    for (int64_t i = 0; i < n; ++i) {
      const float factor = diagonal[i];
      float* HWY_RESTRICT to_q = dq + (start + i) * key_dim;
      float* HWY_RESTRICT to_k = dk + (start + i) * key_dim;
      for (int64_t c = 0; c < key_dim; ++c) {
        to_q[c] += factor * own_k[i * key_dim + c];
        to_k[c] += factor * own_q[i * key_dim + c];
      }
    }
  }

  // The same through the state that leaves the block, whose gradient is ds.
  void through_leaving_state(const float* after) {
    Multiply(n * key_dim, own_k, decay.to_end, key_work);
    SmallMatmul(n, columns, key_dim, key_work, key_dim, 1, ds, columns, du, columns, true);
    Transpose(key_dim, columns, ds, columns, state_t, key_dim);
    SmallMatmul(n, key_dim, columns, own_u, columns, 1, state_t, key_dim, key_work, key_dim, false);
    for (int64_t e = 0; e < n * key_dim; ++e) as_key[e] += decay.to_end[e] * key_work[e];
    float* last_gates = gates + (n - 1) * key_dim;
    for (int64_t c = 0; c < key_dim; ++c) {
      last_gates[c] = DotProduct(ds + c * columns, after + c * columns, columns);
    }
  }

  // du becomes the gradient of the residuals.
  void through_solve() {
    if constexpr (kDeltaRule) {
      BlockScores(n, decay, keys, own_k, false, k_scores);
      for (int64_t i = n - 1; i > 0; --i) {
        const float* HWY_RESTRICT from = du + i * columns;
        for (int64_t j = 0; j < i; ++j) {
          const float factor = beta[start + i] * k_scores[i * kBlock + j];
          float* HWY_RESTRICT to = du + j * columns;
          for (int64_t c = 0; c < columns; ++c) to[c] -= factor * from[c];
        }
      }
    }
    if (gradients.beta != nullptr) {
      const float* own_z = z + start * columns;
      for (int64_t i = 0; i < n; ++i) {
        gradients.beta[(row + i) * gradients.virtual_heads + virtual_head] =
            DotProduct(du + i * columns, own_z + i * columns, columns);
      }
    }
    ScaleRows(n, columns, beta + start, du, du);
    if constexpr (kDeltaRule) {
      PairProducts(n, columns, -1, du, u_t, pair_grads, diagonal);
      BlockScoreGradients(n, decay, keys, own_k, pair_grads, as_eraser, as_key, key_work);
    }
  }

  // ds becomes the gradient of the state that entered the block; zeros that enter the first block
  // of all need none.
  void through_entering_state(const float* state, bool last) {
    Transpose(key_dim, columns, state, columns, state_t, key_dim);
    SmallMatmul(n, key_dim, columns, d_out, columns, 1, state_t, key_dim, key_work, key_dim, false);
    for (int64_t e = 0; e < n * key_dim; ++e) as_query[e] += decay.from_start[e] * key_work[e];
    if constexpr (kDeltaRule) {
      SmallMatmul(n, key_dim, columns, du, columns, 1, state_t, key_dim, key_work, key_dim, false);
      for (int64_t e = 0; e < n * key_dim; ++e) as_eraser[e] -= decay.from_start[e] * key_work[e];
    }
    if (!last) ScaleRows(key_dim, columns, decay.total(n), ds, ds);
    Multiply(n * key_dim, own_q, decay.from_start, key_work);
    SmallMatmul(key_dim, columns, n, key_work, 1, key_dim, d_out, columns, ds, columns, true);
    if constexpr (kDeltaRule) {
      Multiply(n * key_dim, own_k, decay.from_start, key_work);
      for (int64_t e = 0; e < n * columns; ++e) du[e] = -du[e];
      SmallMatmul(key_dim, columns, n, key_work, 1, key_dim, du, columns, ds, columns, true);
    }
  }

  void give_gates(int64_t head) {
    for (int64_t e = 0; e < n * key_dim; ++e) {
      gates[e] += own_q[e] * as_query[e] + own_k[e] * (as_eraser[e] - as_key[e]);
    }
    // A decay is part of every later sum.
    for (int64_t i = n - 2; i >= 0; --i) {
      AddTo(key_dim, gates + (i + 1) * key_dim, gates + i * key_dim);
    }
    const int64_t slice = virtual_head % task.slices;
    for (int64_t i = 0; i < n; ++i) {
      std::copy_n(gates + i * key_dim, key_dim,
                  gradients.log_decay +
                      (((row + i) * task.slices + slice) * problem.value_heads + head) * key_dim);
    }
  }

  const OuterProductProblem& problem;
  const ChunkTask& task;
  const OuterProductSegment& segment;
  const ConstMatrix& out_grad;
  const OuterProductSaved& saved;
  const ChunkTaskGradients& gradients;
  int64_t key_dim, columns, state_size;

  // The chunk: its rows.
  int64_t chunk = 0, rows = 0, first_row = 0;
  bool nothing_after = false;  // it is the last, and nothing is asked of the state after it
  // The head, and the gradient of its state.
  int64_t virtual_head = 0;
  float* ds = nullptr;
  // The block: n rows from `row` on, which is `start` in the chunk, and what is theirs.
  int64_t start = 0, n = 0, row = 0;
  const float *own_q = nullptr, *own_k = nullptr, *own_u = nullptr;

  Scratch scratch;
  float* state_grads = scratch.take(task.heads * state_size);
  float* states = scratch.take((kBlocks + 1) * state_size);  // before and after the blocks
  float* state_t = scratch.take(state_size);
  float* k = scratch.take(kChunk * key_dim);
  float* q = scratch.take(kChunk * key_dim);
  float* dk = scratch.take(kChunk * key_dim);
  float* dq = scratch.take(kChunk * key_dim);
  float* as_query = scratch.take(kBlock * key_dim);   // gradient of q
  float* as_eraser = scratch.take(kBlock * key_dim);  // of k where it looks back
  float* as_key = scratch.take(kBlock * key_dim);     // of k where it is looked back at
  float* key_work = scratch.take(kBlock * key_dim);
  float* gates = scratch.take(kBlock * key_dim);
  float* q_scores = scratch.take(kBlock * kBlock);
  float* k_scores = scratch.take(kBlock * kBlock);
  float* pair_grads = scratch.take(kBlock * kBlock);
  float* z = scratch.take(kChunk * columns);
  float* u = scratch.take(kChunk * columns);
  float* u_t = scratch.take(kBlock * columns);
  float* d_out = scratch.take(kBlock * columns);
  float* du = scratch.take(kBlock * columns);
  float* work = scratch.take(kBlock * columns);
  float beta[kChunk], diagonal[kBlock];
  BlockDecay decay{scratch, key_dim};
  BlockKeys keys{scratch, key_dim};
};

template <bool kDeltaRule>
void BackwardTask(const OuterProductProblem& problem, const ChunkTask& task,
                  const ConstMatrix& out_grad, const OuterProductSaved& saved,
                  const ChunkTaskGradients& gradients) {
  TaskBackward<kDeltaRule>(problem, task, out_grad, saved, gradients).run();
}

void BackwardKinds(const OuterProductProblem& problem, const ChunkTask& task,
                   const ConstMatrix& out_grad, const OuterProductSaved& saved,
                   const ChunkTaskGradients& gradients) {
  (problem.delta_rule ? BackwardTask<true> : BackwardTask<false>)(problem, task, out_grad, saved,
                                                                  gradients);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(BackwardKinds);

void channel_backward_task(const OuterProductProblem& problem, const ChunkTask& task,
                           const ConstMatrix& out_grad, const OuterProductSaved& saved,
                           const ChunkTaskGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(BackwardKinds)(problem, task, out_grad, saved, gradients);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
