// Token shift (RWKV, arXiv 2305.13048, section 3.1): rows mixed with the row before, channel by
// channel, in several proportions at once.
#pragma once

#include <cstdint>
#include <span>

#include "tensor/batch.h"
#include "tensor/pool.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// The journal it keeps: a row is a token's x; no anchor, and a history of one row.
JournalShape token_shift_journal(int64_t channels);

// y_s = x_t + (x_{t-1} - x_t) mixes[s] for each of the mixes [channels], where the row before a
// sequence is zero; tree nodes are mixed with their parents. x [rows, channels]; returns as many
// tensors of its shape as there are mixes. With a tape, segments must have no state. Throws Error
// if widths differ.
PooledVector<Tensor> token_shift(const Context& context, const Tensor& x,
                                 std::span<const Tensor> mixes, const CheckedBatch& batch,
                                 JournalSlot slot);

}  // namespace pronghorn
