// Functions of single numbers: activations of feed-forwards, and what gates and feature maps are
// made of.
#pragma once

namespace pronghorn {

enum class Activation {
  silu,          // x sigmoid(x)
  gelu,          // x Phi(x) (arXiv 1606.08415)
  gelu_tanh,     // its tanh form, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  relu,          // max(x, 0)
  relu_squared,  // max(x, 0)^2 (arXiv 2109.08668)
  exp,           // e^x, at most e^88
  softplus,      // ln(1 + e^x)
  log_sigmoid,   // -ln(1 + e^-x)
  elu_plus_one,  // x + 1 above 0, else e^x: the feature map of arXiv 2006.16236
  // ln(1 + e^(x - k)) - 0.08 x - c, k = 1 and c = 0.313261687 (0 at 0), k = 4 and c = 0.035
  // (Zipformer, arXiv 2310.11230, section 3.4)
  swoosh_r,
  swoosh_l
};

}  // namespace pronghorn
