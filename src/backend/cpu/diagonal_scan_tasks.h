// The pieces of work that the CPU kernels of diagonal scans are made of: each runs on one thread
// and is compiled for every instruction set. Channels [channel, channel + count) are one group.
#pragma once

#include <cstdint>
#include <span>

#include "backend/cpu/scan_tasks.h"
#include "backend/diagonal_scan.h"

namespace pronghorn::cpu_diagonal_scan {

using cpu_scan::kGroup;

struct Group {
  int64_t channel = 0, count = 0;
};

void forward(const DiagonalScan& scan, const ScanSegment& segment, Group group, const Matrix& h);
void replay(const DiagonalScan& scan, std::span<const float* const> rows, Group group, bool fresh,
            float* state);
// log_a_sums [count]: of a constant log_a, for this segment.
void backward(const DiagonalScan& scan, const ScanSegment& segment, Group group,
              const ConstMatrix& h, const ConstMatrix& dh, const DiagonalScanGradients& gradients,
              float* log_a_sums);

// scratch: [2 modes][kGroup]
void ssm_forward(const DiagonalSsm& scan, const ScanSegment& segment, Group group, float* scratch,
                 const Matrix& y);
void ssm_replay(const DiagonalSsm& scan, std::span<const float* const> rows, Group group,
                bool fresh, float* scratch, float* state);
// scratch: [4 modes][kGroup]; sums: [4 modes + 1][kGroup], of poles, reads and D for this segment.
void ssm_backward(const DiagonalSsm& scan, const ScanSegment& segment, Group group,
                  const ConstMatrix& dy, const Matrix& du, float* scratch, float* sums);

// All rows, by several threads.
void rg_lru_gates(const RgLruGates& gates, const Matrix& log_a, const Matrix& x);
void rg_lru_gates_backward(const RgLruGates& gates, const ConstMatrix& d_log_a,
                           const ConstMatrix& d_x, const RgLruGateGradients& gradients);

}  // namespace pronghorn::cpu_diagonal_scan
