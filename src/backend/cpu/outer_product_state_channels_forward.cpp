// Chunked forward pass of outer-product states with a decay per key channel.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/outer_product_state_channels_forward.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target: included once for each instruction set.
#include "backend/cpu/outer_product_state_channels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

template <bool kDeltaRule>
void ForwardTask(const OuterProductProblem& problem, const ChunkTask& task, const Matrix& out,
                 const OuterProductSaved& saved) {
  const OuterProductSegment& segment = *task.segment;
  const int64_t key_dim = problem.key_dim, value_dim = problem.value_dim;
  const int64_t columns = value_dim / task.slices, state_size = key_dim * columns;
  constexpr int64_t kReads = kDeltaRule ? 2 : 1;  // of the state: for q and, to erase, for k
  Scratch scratch;
  float* states = scratch.take(task.heads * state_size);
  float* k = scratch.take(kBlock * key_dim);
  float* q = scratch.take(kBlock * key_dim);
  float* decayed = scratch.take(kReads * kBlock * key_dim);
  float* read = scratch.take(kReads * kBlock * columns);
  float* scores = scratch.take(kBlock * kBlock);
  float* z = scratch.take(kBlock * columns);  // what is written, before its strength
  float* u = scratch.take(kBlock * columns);
  float beta[kBlock];
  BlockDecay decay(scratch, key_dim);
  BlockKeys keys(scratch, key_dim);

  TakeStates(problem, task, segment.state_in, states);
  for (int64_t start = 0; start < segment.length; start += kBlock) {
    const int64_t n = std::min(kBlock, segment.length - start);
    const int64_t row = segment.first_row + start, key_column = task.key_head * key_dim;
    const bool blank = start == 0 && segment.state_in == nullptr;  // the states are zero
    PackRows(n, key_dim, problem.k.row(row) + key_column, problem.k.stride, 1, k);
    PackRows(n, key_dim, problem.q.row(row) + key_column, problem.q.stride, problem.query_scale, q);

    for (int64_t index = 0; index < task.heads; ++index) {
      const HeadPlace place(problem, task, index);
      const int64_t head = place.head, column = place.column;
      float* state = states + index * state_size;
      ComputeBlockDecay(n, problem.log_decay.row(row) + head * key_dim, problem.log_decay.stride,
                        decay);
      SetKeys(decay, k, keys);
      TakeStrengths(problem, row, n, head, beta);
      PackRows(n, columns, problem.v.row(row) + column, problem.v.stride, 1, z);
      if (saved.states != nullptr && start % kChunk == 0) {
        const int64_t chunk = segment.first_chunk + start / kChunk;
        StoreState(problem, place, state,
                   saved.states + chunk * problem.value_heads * key_dim * value_dim);
      }

      if (blank) {
        std::fill_n(read, kReads * n * columns, 0.0f);
      } else {
        Multiply(n * key_dim, q, decay.from_start, decayed);
        if (kDeltaRule) Multiply(n * key_dim, k, decay.from_start, decayed + n * key_dim);
        SmallMatmul(kReads * n, columns, key_dim, decayed, key_dim, 1, state, columns, read,
                    columns, false);
      }
      if constexpr (kDeltaRule) {
        // z_i = v_i - what the state and the rows before hold for k_i.
        BlockScores(n, decay, keys, k, false, scores);
        const float* held = read + n * columns;
        for (int64_t i = 0; i < n; ++i) {
          float* HWY_RESTRICT to = z + i * columns;
          for (int64_t c = 0; c < columns; ++c) to[c] -= held[i * columns + c];
          for (int64_t j = 0; j < i; ++j) {
            const float factor = scores[i * kBlock + j] * beta[j];
            const float* HWY_RESTRICT from = z + j * columns;
            for (int64_t c = 0; c < columns; ++c) to[c] -= factor * from[c];
          }
        }
        if (saved.residuals != nullptr) StoreResiduals(problem, place, row, n, z, saved.residuals);
      }
      ScaleRows(n, columns, beta, z, u);
      BlockScores(n, decay, keys, q, true, scores);
      SmallMatmul(n, columns, n, scores, kBlock, 1, u, columns, read, columns, true);
      const float skip = problem.skip != nullptr ? problem.skip[head] : 0.0f;
      for (int64_t i = 0; i < n; ++i) {
        float* HWY_RESTRICT to = out.row(row + i) + column;
        const float* HWY_RESTRICT v = problem.v.row(row + i) + column;
        for (int64_t c = 0; c < columns; ++c) to[c] = read[i * columns + c] + skip * v[c];
      }
      AdvanceState(n, decay, k, u, columns, blank, state, decayed);
    }
  }
  StoreFinalStates(problem, task, states);
}

void ForwardKinds(const OuterProductProblem& problem, const ChunkTask& task, const Matrix& out,
                  const OuterProductSaved& saved) {
  (problem.delta_rule ? ForwardTask<true> : ForwardTask<false>)(problem, task, out, saved);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(ForwardKinds);

void channel_forward_task(const OuterProductProblem& problem, const ChunkTask& task,
                          const Matrix& out, const OuterProductSaved& saved) {
  HWY_DYNAMIC_DISPATCH(ForwardKinds)(problem, task, out, saved);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
