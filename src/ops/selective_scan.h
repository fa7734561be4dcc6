// Mamba's selective scan, S6 (arXiv 2312.00752, algorithm 2).
#pragma once

#include <cstdint>

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// The journal it keeps: a row is [softplus'd dt | x | B], 2 channels + state_size wide; the anchor
// is h [state_size, channels].
JournalShape selective_scan_journal(int64_t channels, int64_t state_size);

struct SelectiveScanInputs {
  Tensor x, dt_raw, dt_bias, A_log, B, C, D;
  Tensor rates = {};  // selective_scan_rates(A_log), if they are known
};

// What the scan makes of A_log [channels, N] before it reads it: to be made once in inference, not
// for every token.
Tensor selective_scan_rates(const Tensor& A_log);

// For each channel c with state h_c in R^N:
//   dt_t = softplus(dt_raw_t + dt_bias)
//   h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,   A = -exp(A_log)
//   y_t = C_t . h_t + D x_t
// x, dt_raw [rows, channels]; dt_bias, D [channels]; A_log [channels, N]; B, C [rows, N], shared by
// all channels. Returns y [rows, channels]. All in f32 whatever the precision (bf16 step sizes
// break long memories). With a tape, segments must have no state. rates: as
// SelectiveScanInputs::rates.
Tensor selective_scan(const Context& context, const Tensor& x, const Tensor& dt_raw,
                      const Tensor& dt_bias, const Tensor& A_log, const Tensor& B, const Tensor& C,
                      const Tensor& D, const CheckedBatch& batch, JournalSlot slot,
                      const Tensor& rates = {});

struct SelectiveScanResult {
  Tensor y;      // [rows, channels]
  Tensor state;  // [segments, N channels]: h after each segment, [N, channels]
};

// The same for segments without a state that begin with `before` (as SelectiveScanResult::state has
// it; undefined: zeros), with gradients of that and of what they leave. Segments must have rows.
SelectiveScanResult selective_scan_from(const Context& context, const SelectiveScanInputs& inputs,
                                        const Tensor& before, const CheckedBatch& batch);

}  // namespace pronghorn
