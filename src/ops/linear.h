// Products with weight matrices.
#pragma once

#include "tensor/tape.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace pronghorn {

// y = x W^T + b. x [rows, in], W [out, in], b [out] or undefined; y [rows, out] f32. Operands are
// rounded to bf16 if the context's precision says so. Without a tape (inference) a row of y does
// not depend, to the bit, on the other rows of x or on their number.
// Throws Error if the widths differ.
Tensor linear(const Context& context, const Tensor& x, const Weight& weight,
              const Tensor& bias = {});

}  // namespace pronghorn
