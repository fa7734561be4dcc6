// Diagonal scans (kernel family C): h_t = a_t * h_{t-1} + u_t, element by element. The selective
// scan of Mamba is the one there is; its state is h [state_size, channels] (channels adjacent).
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/operands.h"
#include "backend/replay.h"

namespace pronghorn {

// dt = softplus(dt_raw + dt_bias), h = exp(dt A) h + dt B x, y = C . h + D x, A = -exp(A_log).
struct SelectiveScan {
  int64_t channels = 0, state_size = 0;
  ConstMatrix x, dt_raw;           // [rows, channels]
  ConstMatrix B, C;                // [rows, state_size]
  ConstMatrix A_log;               // [channels, state_size]
  const float* dt_bias = nullptr;  // [channels]
  const float* D = nullptr;        // [channels]
  const float* rates = nullptr;    // what make_rates() makes of A_log; null: made for the call
};

// Rows first_row ... continue one sequence.
struct ScanSegment {
  int64_t first_row = 0, length = 0;
  const float* state_in = nullptr;            // null: zeros
  float* state_out = nullptr;                 // null: not wanted; may be state_in
  std::span<const ReplaySnapshot> snapshots;  // by increasing tokens
  // Rows [dt | x | ...] to write for the tokens from journal_from on; may be null.
  float* const* journal_rows = nullptr;
  int64_t journal_from = 0;
  // It comes after the segments before it in the list, from which its state may come
  // (backend/segment_runs.h).
  bool follows = false;
  // In backward passes alone: the gradient of the state after the segment (null: zeros), and where
  // that of the state before it is added (null: not wanted). Of a segment with `follows`, a place
  // may be the gradient of a state that an earlier one leaves.
  const float* state_out_gradient = nullptr;
  float* state_in_gradient = nullptr;
  // A token tree: the parent of each row within the segment, or -1 for state_in. Null: a chain.
  // Trees take no snapshots and leave no state.
  const int32_t* parents = nullptr;
};

struct SelectiveScanGradients {
  Matrix x, dt_raw, B, C;  // as the operands
  Matrix A_log, dt_bias, D;
};

class ScanKernels {
 public:
  virtual ~ScanKernels() = default;

  // The decay rates of A_log [channels, state_size] in the order in which kernels read them,
  // rates_size() floats: the same bits on every instruction set.
  virtual int64_t rates_size(int64_t channels, int64_t state_size) = 0;
  virtual void make_rates(const ConstMatrix& A_log, int64_t channels, int64_t state_size,
                          float* rates) = 0;

  // y [rows, channels]. A token's arithmetic is the same whatever the segment it is in, so its bits
  // do not depend on how a sequence is cut, nor on the other segments.
  virtual void selective_forward(const SelectiveScan& scan, std::span<const ScanSegment> segments,
                                 float* y, int64_t y_stride) = 0;

  // Advances state over journal rows [dt | x | B] (only channels, state_size, A_log and rates of
  // `scan` are read): bit for bit what selective_forward makes of the same tokens. fresh: the state
  // counts as zeros before.
  virtual void selective_replay(const SelectiveScan& scan, std::span<const float* const> rows,
                                bool fresh, float* state) = 0;

  // Tokens between the states that the backward pass wants: snapshots after kChunk, 2 kChunk, ...
  // tokens of every segment, for all multiples below its length.
  static constexpr int64_t kChunk = 32;

  // Gradients from dy, and from those of the segments' last states, for segments that started from
  // `state_in`. The sums over rows and channels do not depend on the number of threads.
  virtual void selective_backward(const SelectiveScan& scan, std::span<const ScanSegment> segments,
                                  const ConstMatrix& dy,
                                  const SelectiveScanGradients& gradients) = 0;
};

std::unique_ptr<ScanKernels> make_cpu_scan_kernels();

}  // namespace pronghorn
