// Weight: a matrix of parameters and the packed copies that matrix kernels want of it.
#pragma once

#include <cstdint>
#include <memory>

#include "tensor/tensor.h"

namespace pronghorn {

struct PackedWeight;  // belongs to the backend

// Copies share the numbers, the gradient and the packed copies.
class Weight {
 public:
  Weight() = default;
  // value: [out, in], f32.
  explicit Weight(Tensor value);

  const Tensor& value() const { return value_; }
  bool defined() const { return value_.defined(); }
  int64_t out() const { return value_.rows(); }
  int64_t in() const { return value_.columns(); }

  // A slot where the backend keeps its packed copies; it compares value().version() to see whether
  // they are out of date.
  std::shared_ptr<PackedWeight>& packed() const { return *packed_; }

 private:
  Tensor value_;
  std::shared_ptr<std::shared_ptr<PackedWeight>> packed_;
};

}  // namespace pronghorn
