// Products of one input with several weight matrices.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "tensor/tape.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace pronghorn {

// One of several products with the same x. An undefined weight gives an undefined result.
struct LinearMap {
  const Weight* weight = nullptr;
  const Tensor* bias = nullptr;  // null, or undefined: none
};
constexpr size_t kMostMaps = 8;

// y[i] = linear(context, x, *maps[i].weight, *maps[i].bias) of ops/linear.h, bit for bit, gradients
// included; x is read, and rounded, once for all of them, and the threads are forked once. At most
// kMostMaps.
void linear_maps(const Context& context, const Tensor& x, std::span<const LinearMap> maps,
                 std::span<Tensor> y);

// The same: auto [q, k] = linear_maps(context, x, {{&q_proj}, {&k_proj, &k_bias}}).
template <size_t N>
std::array<Tensor, N> linear_maps(const Context& context, const Tensor& x,
                                  const LinearMap (&maps)[N]) {
  static_assert(N <= kMostMaps);
  std::array<Tensor, N> y;
  linear_maps(context, x, std::span<const LinearMap>(maps), std::span<Tensor>(y));
  return y;
}

}  // namespace pronghorn
