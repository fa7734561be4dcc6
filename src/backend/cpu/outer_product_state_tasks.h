// The pieces of work that the CPU kernels of outer-product states are made of: each runs on one
// thread and is compiled for every instruction set.
#pragma once

#include <cstdint>

#include "backend/outer_product_state.h"

namespace pronghorn {

// Value heads are cut into `slices` of columns each, which behave like heads that share their gates
// (the recurrence never mixes columns); these virtual heads are numbered head * slices + slice. A
// task runs some neighbouring virtual heads of one key head over one segment, chunk after chunk:
// scores of q and k are computed once for all of them.
struct ChunkTask {
  const OuterProductSegment* segment = nullptr;
  int64_t key_head = 0;
  int64_t first_head = 0;  // virtual
  int64_t heads = 1;
  int64_t slices = 1;
};

// Gradients of one task: of q and k (head `key_head` of rows of all key heads), for the parts that
// are summed over tasks a place of its own.
struct ChunkTaskGradients {
  Matrix q, k, v;
  // [rows, virtual heads]; a decay per key channel: [rows, slices, value heads, key_dim].
  float* log_decay = nullptr;
  float* beta = nullptr;  // [rows, virtual heads]
  float* skip = nullptr;  // [virtual heads]
  int64_t virtual_heads = 0;
};

void chunk_forward_task(const OuterProductProblem& problem, const ChunkTask& task,
                        const Matrix& out, const OuterProductSaved& saved);

void chunk_backward_task(const OuterProductProblem& problem, const ChunkTask& task,
                         const ConstMatrix& out_grad, const OuterProductSaved& saved,
                         const ChunkTaskGradients& gradients);

// All steps of one sequence, for one value head.
void step_task(const OuterProductProblem& problem, std::span<const ReplayStep> steps, int64_t head,
               const Matrix& out);

// The same three for a decay per key channel, of which sums over pairs of rows need every channel's
// own.
void channel_forward_task(const OuterProductProblem& problem, const ChunkTask& task,
                          const Matrix& out, const OuterProductSaved& saved);

void channel_backward_task(const OuterProductProblem& problem, const ChunkTask& task,
                           const ConstMatrix& out_grad, const OuterProductSaved& saved,
                           const ChunkTaskGradients& gradients);

void channel_step_task(const OuterProductProblem& problem, std::span<const ReplayStep> steps,
                       int64_t head, const Matrix& out);

// Tokens that a step computes in one pass over the anchor.
constexpr int64_t kStepTokens = 16;

}  // namespace pronghorn
