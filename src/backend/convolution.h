// Short causal depthwise convolutions.
#pragma once

#include <cstdint>
#include <memory>

#include "backend/operands.h"

namespace pronghorn {

class ConvolutionKernels {
 public:
  virtual ~ConvolutionKernels() = default;

  // The sizes and parameters of one convolution.
  struct Filter {
    int64_t channels = 0, taps = 0;
    const float* weight = nullptr;  // [channels, taps], the last tap is the current token
    const float* bias = nullptr;    // [channels] or null
    bool silu = false;
  };

  // y[r] = act(bias + sum_j weight[:, j] inputs[r * taps + j]) for each row r: inputs[...] are the
  // addresses of rows of `channels` floats, so they may lie anywhere (earlier rows, a journal, one
  // shared row of zeros). A row is computed alone, in the order of its taps: its bits do not depend
  // on the others.
  virtual void forward(const Filter& filter, int64_t rows, const float* const* inputs, float* y,
                       int64_t y_stride) = 0;

  // The gradient after the activation: pre_grad = dy * act'(pre-activation), [rows, channels], and
  // from it the sums over rows weight_grad [channels, taps] and bias_grad [channels].
  virtual void backward(const Filter& filter, int64_t rows, const float* const* inputs,
                        const float* dy, int64_t dy_stride, float* pre_grad,
                        const Matrix& weight_grad, const Matrix& bias_grad) = 0;

  // x_grad[r] (+)= sum_j weight[:, j] pre_grads[r * taps + j]: the gradient of the inputs, where
  // pre_grads[r * taps + j] is the address of pre_grad of the row that read r with tap j (a row of
  // zeros if there is none).
  virtual void backward_input(const Filter& filter, int64_t rows, const float* const* pre_grads,
                              const Matrix& x_grad) = 0;
};

std::unique_ptr<ConvolutionKernels> make_cpu_convolution_kernels();

}  // namespace pronghorn
