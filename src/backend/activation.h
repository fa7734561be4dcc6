// Activations of feed-forwards.
#pragma once

namespace pronghorn {

enum class Activation {
  silu,         // x sigmoid(x)
  gelu,         // x Phi(x) (arXiv 1606.08415)
  gelu_tanh,    // its tanh form, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  relu,         // max(x, 0)
  relu_squared  // max(x, 0)^2 (arXiv 2109.08668)
};

}  // namespace pronghorn
