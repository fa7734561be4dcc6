// Short causal depthwise convolution, as in front of every modern linear recurrence.
#pragma once

#include <cstdint>

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// The journal it keeps: a row is the raw input of a token, `channels` wide; no anchor, and a
// history of conv_kernel - 1 rows.
JournalShape short_convolution_journal(int64_t channels, int64_t conv_kernel);

// y_t[c] = act(bias[c] + sum_j weight[c, j] x_{t - (conv_kernel - 1 - j)}[c]), act silu or
// identity, where inputs before the sequence are zero. x [rows, channels] (a column slice is fine),
// weight [channels, conv_kernel] (the last tap is the current token, as in PyTorch's conv1d), bias
// [channels] or undefined. Tree nodes find their taps through their parents.
// With a tape, segments must have no state.
Tensor short_convolution(const Context& context, const Tensor& x, const Tensor& weight,
                         const Tensor& bias, bool silu, const CheckedBatch& batch,
                         JournalSlot slot);

}  // namespace pronghorn
