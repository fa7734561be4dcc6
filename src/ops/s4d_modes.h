// The modes of S4D from its parameters: what diagonal_ssm() takes.
#pragma once

#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

struct DiagonalModes {
  Tensor poles, reads;  // [2 modes, channels]
};

// How the step size makes a discrete system of a continuous one.
enum class Discretisation { zero_order_hold, bilinear };

// Gu et al., arXiv 2206.11893, section 2.2 and equation 5, with B = 1 and A = -exp(log_A_real) +
// i A_imag, dt = exp(log_dt):
//   zero-order hold  p = exp(dt A),                      c = C (exp(dt A) - 1) / A
//   bilinear         p = (1 + dt A / 2) / (1 - dt A / 2), c = C dt / (1 - dt A / 2)
// log_dt [channels]; log_A_real, A_imag [channels, modes]; C [channels, modes, 2], real and
// imaginary part. Computed in f64. Throws Error for shapes that do not fit.
DiagonalModes s4d_modes(const Context& context, const Tensor& log_dt, const Tensor& log_A_real,
                        const Tensor& A_imag, const Tensor& C, Discretisation discretisation);

}  // namespace pronghorn
