// Projections of layers that may be computed in few bits (BitNet b1.58, arXiv 2402.17764).
#pragma once

#include <array>
#include <memory>
#include <span>
#include <string>

#include "layers/fields.h"
#include "layers/parameters.h"
#include "ops/linear_maps.h"
#include "tensor/tape.h"

namespace pronghorn {

// How the products of a layer are computed.
enum class ProductBits {
  whole,
  inputs,  // inputs are rounded to 8 bits a row
  ternary  // and matrices to -1, 0 and 1 times a factor
};

// The key "bits": "whole", "inputs" or "ternary".
ProductBits read_product_bits(ConfigFields& f);

// x W^T + b for the matrices of one layer. What it has rounded of read-only matrices is kept until
// their numbers change.
class Projector {
 public:
  explicit Projector(ProductBits bits);

  // What several projections of one x are given.
  Tensor input(const Context& context, const Tensor& x) const;
  // input: as input() returns it.
  Tensor operator()(const Context& context, const Tensor& input, const Weight& weight,
                    const Tensor& bias = {}) const;
  // The same for several matrices at once (linear_maps()).
  template <size_t N>
  std::array<Tensor, N> operator()(const Context& context, const Tensor& input,
                                   const LinearMap (&maps)[N]) const {
    std::array<Tensor, N> y;
    several(context, input, std::span<const LinearMap>(maps), std::span<Tensor>(y));
    return y;
  }

 private:
  struct Cache;
  Weight rounded(const Context& context, const Weight& weight) const;
  void several(const Context& context, const Tensor& input, std::span<const LinearMap> maps,
               std::span<Tensor> y) const;

  ProductBits bits_;
  std::shared_ptr<Cache> cache_;
};

}  // namespace pronghorn
