// What layers compute of single rows around an outer-product state: what a token reads of itself,
// and the rotations that make a real state a complex one (Mamba-3, arXiv 2603.15569). Each row of a
// result is computed from its inputs alone; sums over rows are taken over fixed blocks of rows and
// combined in order.
#pragma once

#include <cstdint>
#include <memory>

#include "backend/operands.h"
#include "backend/pointwise.h"

namespace pronghorn {

// For each head: out = y + (strength s + skip) v, s the sum of q k weight over the head's keys.
struct OwnRead {
  int64_t rows = 0, heads = 0, key_dim = 0, value_dim = 0;
  ConstMatrix y, v;               // [rows, heads value_dim]
  ConstMatrix q, k;               // [rows, heads key_dim]
  ConstMatrix strength;           // [rows, heads]; absent: 1
  const float* weight = nullptr;  // [heads key_dim]; null: 1
  const float* skip = nullptr;    // [heads]; null: 0
};
struct OwnReadGradients {
  Matrix y, v, q, k, strength;
  GradVector weight, skip;
};

// Keys of groups for their heads, each with a bias of its own, pairs of columns turned: the two
// columns 2 i and 2 i + 1 of a head, i < pairs, by angle i of that head. Head h has group
// h / (heads / groups).
struct TurnedHeads {
  int64_t rows = 0, heads = 0, groups = 0, width = 0, pairs = 0;
  ConstMatrix x;                // [rows, groups width]
  ConstMatrix angles;           // [rows, heads pairs]
  const float* bias = nullptr;  // [heads width]
};
struct TurnedHeadsGradients {
  Matrix x, angles;
  GradVector bias;
};

// pi dt_h tanh(angle_i) for each head h and pair i: [rows, heads pairs].
struct AngleSteps {
  int64_t rows = 0, heads = 0, pairs = 0;
  ConstMatrix dt;      // [rows, heads]
  ConstMatrix angles;  // [rows, pairs]
};
struct AngleStepsGradients {
  Matrix dt, angles;
};

class StateRowKernels {
 public:
  virtual ~StateRowKernels() = default;

  virtual void own_read(const OwnRead& read, const Matrix& out) = 0;
  virtual void own_read_backward(const OwnRead& read, const ConstMatrix& dout,
                                 const OwnReadGradients& to) = 0;

  // y [rows, heads width].
  virtual void turned_heads(const TurnedHeads& turn, const Matrix& y) = 0;
  virtual void turned_heads_backward(const TurnedHeads& turn, const ConstMatrix& dy,
                                     const TurnedHeadsGradients& to) = 0;

  virtual void angle_steps(const AngleSteps& steps, const Matrix& y) = 0;
  virtual void angle_steps_backward(const AngleSteps& steps, const ConstMatrix& dy,
                                    const AngleStepsGradients& to) = 0;
};

std::unique_ptr<StateRowKernels> make_cpu_state_row_kernels();

}  // namespace pronghorn
