// The modes of linear systems from the parameters of layers: what diagonal_ssm() takes. All are
// computed in f64 and have gradients.
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
// imaginary part. Throws Error for shapes that do not fit.
DiagonalModes s4d_modes(const Context& context, const Tensor& log_dt, const Tensor& log_A_real,
                        const Tensor& A_imag, const Tensor& C, Discretisation discretisation);

// The damped moving averages of MEGA (arXiv 2209.10655, section 3.1), N = modes averages a channel:
//   h_n,t = (1 - sigmoid(delta_n) sigmoid(alpha_n)) h_n,t-1 + sigmoid(delta_n) beta_n x_t
//   y_t = sum_n gamma_n h_n,t / sqrt(N)
// delta, alpha, beta, gamma [channels, modes]. Poles are real. Throws Error for shapes that do not
// fit.
DiagonalModes damped_average_modes(const Context& context, const Tensor& delta, const Tensor& alpha,
                                   const Tensor& beta, const Tensor& gamma);

// The complex ones of Megalodon (CEMA, arXiv 2404.08801, section 3.1), as its code has them, n from
// 1 on:
//   h_n,t = q_n h_n,t-1 + sigmoid(alpha_n) x_t,   y_t = Re sum_n gamma_n h_n,t / sqrt(N)
//   |q_n| = 1 - sigmoid(alpha_n) sigmoid(delta_n),   arg q_n = 2 pi n sigmoid(theta) / N
// alpha, delta [channels, modes]; theta [channels]; gamma [channels, modes, 2], real and imaginary
// part. Throws Error for shapes that do not fit.
DiagonalModes complex_average_modes(const Context& context, const Tensor& alpha,
                                    const Tensor& delta, const Tensor& theta, const Tensor& gamma);

}  // namespace pronghorn
