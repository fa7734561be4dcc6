// The pieces of work that the CPU kernels of scans are made of: each runs on one thread and is
// compiled for every instruction set.
#pragma once

#include <cstdint>
#include <span>

#include "backend/scan.h"

namespace pronghorn::cpu_scan {

// Channels of one task: four cache lines of every row, and 4 KB of state for 16 states. A multiple
// of the lanes of any vector.
constexpr int64_t kGroup = 64;
// Tokens whose operands are brought into the first-level cache, row by row, before the vectors of
// channels pass over them one at a time.
constexpr int64_t kTile = 16;

// One segment of one group of channels. rates: A log2(e) of the group, A = -exp(A_log), as
// [states][kGroup], zeros after the last channel. scratch: [states][kGroup].
void forward(const SelectiveScan& scan, const ScanSegment& segment, int64_t channel,
             const float* rates, float* scratch, float* y, int64_t y_stride);

// Journal rows over the state [states, channels] of one group of channels; fresh: from zeros.
// scratch: [states][kGroup].
void replay(const SelectiveScan& scan, std::span<const float* const> rows, int64_t channel,
            const float* rates, bool fresh, float* scratch, float* state);

// What one task of the backward pass works with: one group of channels of one segment.
struct BackwardTask {
  const SelectiveScan* scan;
  const ScanSegment* segment;
  ConstMatrix dy;
  const SelectiveScanGradients* gradients;
  int64_t channel, count;
  const float* rates;      // [states][kGroup]
  float* scratch;          // backward_scratch() floats
  float *B_sums, *C_sums;  // [rows, states] of this group
  float* parameter_sums;   // [states + 2][kGroup] of this group and segment: A_log, dt_bias, D
};

int64_t backward_scratch(int64_t states);
void backward(const BackwardTask& task);

}  // namespace pronghorn::cpu_scan
