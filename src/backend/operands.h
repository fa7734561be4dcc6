// What kernels are given: matrices and vectors of f32 in memory, without ownership.
#pragma once

#include <cstdint>

namespace pronghorn {

// A matrix to be read: rows of adjacent numbers, `stride` numbers from one row to the next. data is
// null where a comment allows the matrix to be absent.
struct ConstMatrix {
  const float* data = nullptr;
  int64_t stride = 0;
  const float* row(int64_t index) const { return data + index * stride; }
};

// A matrix to be written whole or, with `accumulate`, added to. The gradient of an input is given
// so; null: not wanted.
struct Matrix {
  float* data = nullptr;
  int64_t stride = 0;
  bool accumulate = false;
  float* row(int64_t index) const { return data + index * stride; }
};

// The gradient of a vector of parameters, one number per column. Null: not wanted.
struct GradVector {
  float* data = nullptr;
  bool accumulate = false;
};

}  // namespace pronghorn
