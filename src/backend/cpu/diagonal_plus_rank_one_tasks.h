// The pieces of work that the CPU kernels of diagonal-plus-rank-one states are made of: each runs
// on one thread and is compiled for every instruction set.
#pragma once

#include <cstdint>
#include <span>

#include "backend/diagonal_plus_rank_one.h"

namespace pronghorn {

// One head, and of it `columns` columns of values from `first_column` on (the recurrence never
// mixes columns), over one segment.
struct RankOneTask {
  const RankOneSegment* segment = nullptr;
  int64_t head = 0;
  int64_t first_column = 0;
  int64_t columns = 0;
};

void rank_one_forward_task(const RankOneProblem& problem, const RankOneTask& task,
                           const Matrix& out, const RankOneSaved& saved);

// The task has all columns of its head.
void rank_one_backward_task(const RankOneProblem& problem, const RankOneTask& task,
                            const ConstMatrix& out_grad, const RankOneSaved& saved,
                            const RankOneGradients& gradients);

// All steps of one sequence, for one head.
void rank_one_step_task(const RankOneProblem& problem, std::span<const ReplayStep> steps,
                        int64_t head, const Matrix& out);

}  // namespace pronghorn
