// Products with weight matrices.
#pragma once

#include "tensor/tape.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace pronghorn {

// y = x W^T + b. x [rows, in], W [out, in], b [out] or undefined; y [rows, out] f32. Operands are
// rounded to bf16 if the context's precision says so. Without a tape (inference) and if the context
// is exact, a row of y is the same bits whatever the other rows of x are and however many. Throws
// Error if the widths differ.
Tensor linear(const Context& context, const Tensor& x, const Weight& weight,
              const Tensor& bias = {});

}  // namespace pronghorn
