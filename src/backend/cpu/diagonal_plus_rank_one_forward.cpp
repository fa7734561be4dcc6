// Chunked forward pass of diagonal-plus-rank-one states.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/diagonal_plus_rank_one_forward.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target: included once for each instruction set.
#include "backend/cpu/diagonal_plus_rank_one-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Solves (I - A) Z = R in place, A strictly lower: `scores` has it in rows of 2 n.
inline void SolveReads(int64_t n, int64_t columns, const float* scores, float* z) {
  for (int64_t i = 1; i < n; ++i) {
    float* HWY_RESTRICT to = z + i * columns;
    for (int64_t j = 0; j < i; ++j) {
      const float factor = scores[i * 2 * n + j];
      const float* HWY_RESTRICT from = z + j * columns;
      for (int64_t c = 0; c < columns; ++c) to[c] += factor * from[c];
    }
  }
}

inline void CopyColumns(int64_t rows, int64_t columns, const float* from, int64_t from_row,
                        float* to, int64_t to_row) {
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(to + i * to_row, from + i * from_row, static_cast<size_t>(columns) * sizeof(float));
  }
}

void ForwardTask(const RankOneProblem& problem, const RankOneTask& task, const Matrix& out,
                 const RankOneSaved& saved) {
  const RankOneSegment& segment = *task.segment;
  const int64_t key_dim = problem.key_dim, value_dim = problem.value_dim, columns = task.columns;
  const int64_t column = task.head * value_dim + task.first_column;
  const int64_t place = task.head * key_dim * value_dim + task.first_column;  // in a state
  const int64_t state_size = problem.heads * key_dim * value_dim;
  Scratch scratch;
  RankOneRows rows(scratch, key_dim);
  float* state = scratch.take(key_dim * columns);
  float* values = scratch.take(2 * kRankOneChunk * columns);  // V, then Z
  float* reads = scratch.take(2 * kRankOneChunk * columns);
  if (segment.state_in != nullptr) {
    CopyColumns(key_dim, columns, segment.state_in + place, value_dim, state, columns);
  } else {
    std::fill_n(state, key_dim * columns, 0.0f);
  }

  for (int64_t start = 0; start < segment.length; start += kRankOneChunk) {
    const int64_t n = std::min(kRankOneChunk, segment.length - start);
    const int64_t row = segment.first_row + start;
    const bool blank = start == 0 && segment.state_in == nullptr;
    if (saved.states != nullptr && start % kRankOneSpan == 0) {
      const int64_t span = segment.first_span + start / kRankOneSpan;
      CopyColumns(key_dim, columns, state, columns, saved.states + span * state_size + place,
                  value_dim);
    }
    LoadWrites(problem, task.head, row, n, rows);
    LoadReads(problem, task.head, row, rows);
    PairScores(rows);
    CopyColumns(n, columns, problem.v.row(row) + column, problem.v.stride, values, columns);
    if (!blank) {
      SmallMatmul(2 * n, columns, key_dim, rows.from_start, rows.width, 1, state, columns, reads,
                  columns, false);
    }

    SmallMatmul(n, columns, n, rows.scores, 2 * n, 1, values, columns, reads, columns, !blank);
    float* z = values + n * columns;
    std::memcpy(z, reads, static_cast<size_t>(n * columns) * sizeof(float));
    SolveReads(n, columns, rows.scores + n, z);
    if (saved.z != nullptr) {
      CopyColumns(n, columns, z, columns, saved.z + row * problem.heads * value_dim + column,
                  problem.heads * value_dim);
    }

    float* o = reads + n * columns;
    SmallMatmul(n, columns, 2 * n, rows.scores + 2 * n * n, 2 * n, 1, values, columns, o, columns,
                !blank);
    CopyColumns(n, columns, o, columns, out.row(row) + column, out.stride);
    AdvanceState(rows, key_dim, columns, values, blank, state, state);
  }

  if (segment.state_out == nullptr) return;
  CopyColumns(key_dim, columns, state, columns, segment.state_out + place, value_dim);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(ForwardTask);

void rank_one_forward_task(const RankOneProblem& problem, const RankOneTask& task,
                           const Matrix& out, const RankOneSaved& saved) {
  HWY_DYNAMIC_DISPATCH(ForwardTask)(problem, task, out, saved);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
