// The pieces of work that the CPU kernels of fast-weight memories are made of: each runs on one
// thread and is compiled for every instruction set.
#pragma once

#include <cstdint>

#include "backend/fast_weight_memory.h"

namespace pronghorn {

// Sums over the tokens of one task; null: not wanted.
struct MemoryTaskGradients {
  float* initial = nullptr;      // [state_size]
  float* tau = nullptr;          // [kMemoryMiniBatch]
  float* norm_weight = nullptr;  // [head_dim]
  float* norm_bias = nullptr;
};

void memory_forward_task(const MemoryProblem& problem, const MemoryRun& run, int64_t head,
                         const Matrix& out, float* saved);

void memory_fold_task(const MemoryProblem& problem, const MemoryFold& fold, int64_t head);

// gradients: rows of q, k, v and the gates are written where they are wanted; `own` is overwritten.
void memory_backward_task(const MemoryProblem& problem, const MemoryRun& run, int64_t head,
                          const ConstMatrix& out_grad, const float* saved,
                          const MemoryGradients& gradients, const MemoryTaskGradients& own);

}  // namespace pronghorn
