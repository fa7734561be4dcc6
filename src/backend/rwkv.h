// What RWKV computes of single rows around its recurrence, in passes of its own: each would be a
// dozen element-wise kernels. Each row of a result is computed from its inputs alone; sums over
// rows are taken over fixed blocks of rows and combined in order.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/operands.h"
#include "backend/pointwise.h"

namespace pronghorn {

// Rows mixed with the rows before them: y_s = x + (before - x) mix_s for several mixes s.
struct TokenShift {
  Extent extent;  // of x
  ConstMatrix x;
  const float* const* before = nullptr;  // [rows]: addresses; null: zeros
  std::span<const float* const> mixes;   // each [columns]
};

// Keys of RWKV-7, in heads of head_dim columns, with s = sigmoid(rate) and unit length a head:
//   log_decay = -e^(-1/2) sigmoid(decay),  key = k (1 + (s - 1) k_a)
//   remove = -unit(k k_k),                 replace = unit(k k_k) s
struct Rwkv7Keys {
  Extent extent;
  int64_t head_dim = 0;
  ConstMatrix decay, rate, k;
  const float *k_k = nullptr, *k_a = nullptr;  // [columns]
};
struct Rwkv7KeysResult {
  Matrix log_decay, key, remove, replace;
};
struct Rwkv7KeysResultGradients {
  ConstMatrix log_decay, key, remove, replace;  // null: zeros
};
struct Rwkv7KeysGradients {
  Matrix decay, rate, k;
  GradVector k_k, k_a;
};

// What leaves RWKV-7's heads: y = (weight n + bias + (sum of r k r_k over the head) v) gate, n the
// head's part of x less its mean, over its deviation. r, k, v and r_k absent: without that sum.
struct Rwkv7Output {
  Extent extent;
  int64_t head_dim = 0;
  float epsilon = 0;
  ConstMatrix x, r, k, v, gate;
  const float *weight = nullptr, *bias = nullptr, *r_k = nullptr;  // [columns]
};
struct Rwkv7OutputGradients {
  Matrix x, r, k, v, gate;
  GradVector weight, bias, r_k;
};

class RwkvKernels {
 public:
  virtual ~RwkvKernels() = default;

  virtual void token_shift(const TokenShift& shift, std::span<const Matrix> y) = 0;
  // after[i]: the row whose `before` is row i, or -1. dy: of each mix; null: zeros.
  virtual void token_shift_backward(const TokenShift& shift, std::span<const ConstMatrix> dy,
                                    const int32_t* after, const Matrix& dx,
                                    std::span<const GradVector> dmixes) = 0;

  virtual void rwkv7_keys(const Rwkv7Keys& keys, const Rwkv7KeysResult& to) = 0;
  virtual void rwkv7_keys_backward(const Rwkv7Keys& keys, const Rwkv7KeysResultGradients& from,
                                   const Rwkv7KeysGradients& to) = 0;

  virtual void rwkv7_output(const Rwkv7Output& output, const Matrix& y) = 0;
  virtual void rwkv7_output_backward(const Rwkv7Output& output, ConstMatrix dy,
                                     const Rwkv7OutputGradients& to) = 0;

  // y = from + (to - from) sigmoid(share), element by element.
  virtual void interpolate(Extent extent, ConstMatrix from, ConstMatrix to, ConstMatrix share,
                           Matrix y) = 0;
  virtual void interpolate_backward(Extent extent, ConstMatrix from, ConstMatrix to,
                                    ConstMatrix share, ConstMatrix dy, Matrix dfrom, Matrix dto,
                                    Matrix dshare) = 0;
};

std::unique_ptr<RwkvKernels> make_cpu_rwkv_kernels();

}  // namespace pronghorn
