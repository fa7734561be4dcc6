// Diagonal scans (kernel family C) whose state is an element a channel, or a few complex modes with
// fixed coefficients a channel. A token's arithmetic is the same whatever the segment it is in, so
// its bits do not depend on how a sequence is cut, nor on the other segments.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/operands.h"
#include "backend/scan.h"

namespace pronghorn {

// h_t = a_t h_{t-1} + x_t, a = exp(log_a). A journal row is [a | x], or x if a is constant. The
// state is h [channels]. Of a sum, a is 1, and the state is [h | r]: h is the f32 that is nearest
// to the sum, and r what it lacks, so that roundings do not add up (Knuth, The Art of Computer
// Programming, volume 2, section 4.2.2, theorem B). With a period, h_t is taken to within half a
// period of 0 by whole periods.
struct DiagonalScan {
  int64_t channels = 0;
  bool constant = false;
  ConstMatrix log_a;  // [rows, channels], <= 0; constant: [1, channels], absent of a sum
  ConstMatrix x;      // [rows, channels]
  bool sum = false;   // needs a constant a
  float period = 0;   // of a sum; 0: none

  int64_t row_width() const { return constant ? channels : 2 * channels; }
};

struct DiagonalScanGradients {
  Matrix log_a, x;  // as the operands
};

// h_n = p_n h_{n, t-1} + u_t for each mode n of a channel, y_t = 2 Re sum_n c_n h_n + D u_t. The
// state is [2 modes, channels], real and imaginary part of a mode one after the other; so are
// poles p and reads c. A journal row is u.
struct DiagonalSsm {
  int64_t channels = 0, modes = 0;
  ConstMatrix u;             // [rows, channels]
  ConstMatrix poles, reads;  // [2 modes, channels]
  const float* D = nullptr;  // [channels]

  int64_t state_rows() const { return 2 * modes; }
};

struct DiagonalSsmGradients {
  Matrix u, poles, reads, D;  // as the operands
};

// The gates of the RG-LRU (ops/rg_lru_gates.h) of some adjacent channels.
struct RgLruGates {
  int64_t rows = 0, channels = 0;
  ConstMatrix u, recurrent, input;     // [rows, channels]; the gates before their sigmoids
  const float* parameter = nullptr;    // [channels]
  const int32_t* positions = nullptr;  // [rows]
};

struct RgLruGateGradients {
  Matrix u, recurrent, input;
  GradVector parameter;
};

class DiagonalScanKernels {
 public:
  virtual ~DiagonalScanKernels() = default;

  // h [rows, channels].
  virtual void forward(const DiagonalScan& scan, std::span<const ScanSegment> segments,
                       const Matrix& h) = 0;
  // Advances a state over journal rows, bit for bit what forward makes of the same tokens; log_a,
  // if it is not constant, and x are not read of `scan`. fresh: the state counts as zeros before.
  virtual void replay(const DiagonalScan& scan, std::span<const float* const> rows, bool fresh,
                      float* state) = 0;
  // Gradients from dh and those of the segments' last states, given h.
  virtual void backward(const DiagonalScan& scan, std::span<const ScanSegment> segments,
                        const ConstMatrix& h, const ConstMatrix& dh,
                        const DiagonalScanGradients& gradients) = 0;

  // y [rows, channels].
  virtual void ssm_forward(const DiagonalSsm& scan, std::span<const ScanSegment> segments,
                           const Matrix& y) = 0;
  // As replay(); `u`, `reads` and `D` are not read.
  virtual void ssm_replay(const DiagonalSsm& scan, std::span<const float* const> rows, bool fresh,
                          float* state) = 0;
  // Tokens between the states that the backward pass wants: snapshots after kChunk, 2 kChunk, ...
  // tokens of every segment, for all multiples below its length.
  static constexpr int64_t kChunk = 64;
  // Gradients from dy and those of the segments' last states.
  virtual void ssm_backward(const DiagonalSsm& scan, std::span<const ScanSegment> segments,
                            const ConstMatrix& dy, const DiagonalSsmGradients& gradients) = 0;

  virtual void rg_lru_gates(const RgLruGates& gates, const Matrix& log_a, const Matrix& x) = 0;
  // d_log_a may be null (zeros), and so may d_x.
  virtual void rg_lru_gates_backward(const RgLruGates& gates, const ConstMatrix& d_log_a,
                                     const ConstMatrix& d_x,
                                     const RgLruGateGradients& gradients) = 0;
};

std::unique_ptr<DiagonalScanKernels> make_cpu_diagonal_scan_kernels();

}  // namespace pronghorn
