// The parts of compressive memories that run on one thread.
#pragma once

#include <cstdint>

#include "backend/compressive_memory.h"

namespace pronghorn::cpu_compressive_memory {

// forward(), backward() and steps() of one sequence and one memory.
void forward(const CompressiveMemoryShape& shape, const CompressiveMemoryRun& run, int64_t memory,
             const CompressiveMemoryInputs& inputs, const Matrix& out);
void backward(const CompressiveMemoryShape& shape, const CompressiveMemoryRun& run, int64_t memory,
              const CompressiveMemoryInputs& inputs, const ConstMatrix& out,
              const ConstMatrix& grad_out, const CompressiveMemoryGradients& gradients);
void steps(const CompressiveMemoryShape& shape, std::span<const ReplayStep> sequence,
           int64_t memory, const CompressiveMemoryInputs& inputs, const Matrix& out);

}  // namespace pronghorn::cpu_compressive_memory
