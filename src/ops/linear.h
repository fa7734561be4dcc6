// Products with weight matrices.
#pragma once

#include "backend/operands.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace pronghorn {

// y = x W^T + b. x [rows, in], W [out, in], b [out] or undefined; y [rows, out] f32. Operands are
// rounded to bf16 if the context's precision says so. Without a tape (inference) and if the context
// is exact, a row of y has the same bits whatever the other rows of x are and however many. Throws
// Error if the widths differ. If the weight has an adapter, scale (x A^T) B^T is added.
Tensor linear(const Context& context, const Tensor& x, const Weight& weight,
              const Tensor& bias = {});

// y = x W: x [rows, out], W [out, in]; y [rows, in] f32. For training and whole prompts: the bits
// of a row of y depend on the other rows. The weight's adapter is added as above.
Tensor linear_transposed(const Context& context, const Tensor& x, const Weight& weight);

// dx = dy W, the gradient of linear()'s input from that of its result. dy [rows, out], dx [rows,
// in]. A read-only weight is widened to f32 some rows at a time, never as a whole.
void linear_input_gradient(const Weight& weight, ConstMatrix dy, int64_t rows, Matrix dx,
                           Precision precision);

}  // namespace pronghorn
