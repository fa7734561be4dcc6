// The gates of the real-gated linear recurrent unit of Hawk and Griffin.
#pragma once

#include <cstdint>
#include <span>

#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

struct RgLruDecay {
  Tensor log_a, x;  // what diagonal_scan() takes
};

// RG-LRU (De et al., arXiv 2402.19427, equations 1 to 4), before its recurrence:
//   log a_t = -8 sigmoid(recurrent_t) softplus(parameter)
//   x_t     = sqrt(1 - a_t^2) sigmoid(input_t) u_t, without the root at position 0
// u [rows, channels]; recurrent and input: the gates before their sigmoids, columns one after
// another in one tensor or several (blocks), [rows, ..] each; parameter [channels]; positions of
// the rows. The gradient of the root is at most 1000, as in the reference, where a comes near 1.
// Throws Error for shapes that do not fit.
RgLruDecay rg_lru_gates(const Context& context, const Tensor& u, std::span<const Tensor> recurrent,
                        std::span<const Tensor> input, const Tensor& parameter,
                        std::span<const int32_t> positions);

}  // namespace pronghorn
