// Products with weight matrices.
#pragma once

#include "backend/operands.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace pronghorn {

// y = x W^T + b. x [rows, in], W [out, in], b [out] or undefined; y [rows, out] f32. Operands are
// rounded to bf16 if the context's precision says so. Without a tape (inference) and if the context
// is exact, a row of y is the same bits whatever the other rows of x are and however many. Throws
// Error if the widths differ. A weight's adapter is added: + scale (x A^T) B^T.
Tensor linear(const Context& context, const Tensor& x, const Weight& weight,
              const Tensor& bias = {});

// y = x W: x [rows, out], W [out, in]; y [rows, in] f32. For training and prompts: rows of y are
// not the same bits whatever the other rows are. A weight's adapter is added.
Tensor linear_transposed(const Context& context, const Tensor& x, const Weight& weight);

// dx = dy W, the gradient of linear()'s input from that of its result. dy [rows, out], dx [rows,
// in]. Of a read-only weight, some rows at a time are f32, never all.
void linear_input_gradient(const Weight& weight, ConstMatrix dy, int64_t rows, Matrix dx,
                           Precision precision);

}  // namespace pronghorn
