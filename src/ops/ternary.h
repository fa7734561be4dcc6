// Numbers of few bits in training and inference (BitNet b1.58, arXiv 2402.17764). Gradients pass as
// if nothing had been rounded (the straight-through estimator, arXiv 1308.3432).
#pragma once

#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// Each row in 8 bits: whole multiples, -128 to 127, of its largest size (at least 1e-5) over 127.
Tensor round_rows(const Context& context, const Tensor& x);

// A matrix of -1, 0 and 1 times the mean size of its numbers (at least 1e-5).
Tensor round_ternary(const Context& context, const Tensor& matrix);

}  // namespace pronghorn
