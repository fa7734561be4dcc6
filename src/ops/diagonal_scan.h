// Scans over a state that is one element a channel, or a few complex modes with fixed coefficients.
// All in f32 whatever the precision. A token's bits do not depend on how its sequence is cut, at
// any length.
#pragma once

#include <cstdint>

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// The journal that diagonal_scan() keeps: a row is [a | x], or x where the decay is constant; the
// anchor is h [channels].
JournalShape diagonal_scan_journal(int64_t channels, bool constant_decay);

// h_t = a_t h_{t-1} + x_t element by element, a = exp(log_a): the recurrence of the RG-LRU (arXiv
// 2402.19427, equation 4), of HGRN (arXiv 2311.04823) and of moving averages.
// x [rows, channels]; log_a [rows, channels], or [channels] for a constant decay; it must not be
// above 0. Returns h [rows, channels]. Decays below 2^-125 are 2^-125. With a tape, segments must
// have no state.
Tensor diagonal_scan(const Context& context, const Tensor& log_a, const Tensor& x,
                     const CheckedBatch& batch, JournalSlot slot);

// The journal that running_sum() keeps: a row is x; the anchor is [h | what h lacks], 2 channels.
JournalShape running_sum_journal(int64_t channels);

// h_t = h_{t-1} + x_t, kept as two f32 numbers, so that h is right to the last place or so after
// any number of tokens: means of long texts. With a period > 0 less whole periods, so that it stays
// within half a period of 0: angles that add up, which f32 would lose the turns of otherwise. Its
// gradient is that of the plain sum. x and h [rows, channels]; period 0: none. With a tape,
// segments must have no state.
Tensor running_sum(const Context& context, const Tensor& x, float period, const CheckedBatch& batch,
                   JournalSlot slot);

// The journal that diagonal_ssm() keeps: a row is u; the anchor are the modes, [2 modes, channels].
JournalShape diagonal_ssm_journal(int64_t channels, int64_t modes);

// A linear system with a diagonal, complex, fixed transition for each channel (S4D, arXiv
// 2206.11893; the damped moving averages of arXiv 2209.10655 and 2404.08801):
//   h_n,t = p_n h_n,t-1 + u_t for each mode n,   y_t = 2 Re sum_n c_n h_n,t + D u_t
// so what a discretisation puts before the input belongs into c, and a real part that is not
// doubled is half a c. u [rows, channels]; poles p and reads c [2 modes, channels], the real part
// of mode n in row 2 n and its imaginary part in row 2 n + 1; D [channels]. Returns y [rows,
// channels]. |p| should be at most 1. With a tape, segments must have no state.
Tensor diagonal_ssm(const Context& context, const Tensor& u, const Tensor& poles,
                    const Tensor& reads, const Tensor& D, const CheckedBatch& batch,
                    JournalSlot slot);

}  // namespace pronghorn
