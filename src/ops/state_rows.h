// What layers compute of single rows around an outer-product state: what a token reads of itself,
// and the rotations that make a real state a complex one. All in f32, a row from that row alone.
#pragma once

#include <cstdint>

#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

struct OwnReadInputs {
  Tensor y, v;      // [rows, heads value_dim]
  Tensor q, k;      // [rows, heads key_dim]
  Tensor strength;  // [rows, heads]; undefined: 1
  Tensor weight;    // heads key_dim numbers; undefined: 1
  Tensor skip;      // [heads]; undefined: 0
};

// y + (strength s + skip) v, s the sum of q k weight over a head: a state that is read before a
// token has written to it, and what the token reads of itself: the bonus of RWKV-6 (arXiv
// 2404.05892, section 4.1), the last term of Mamba-3's trapezoids (arXiv 2603.15569).
Tensor own_read(const Context& context, const OwnReadInputs& inputs, int64_t heads);

// Keys x [rows, groups width] for heads that share them: x + bias of the head, with the columns
// 2 i and 2 i + 1 turned by angle i. bias [heads, width], angles [rows, heads pairs], 2 pairs <=
// width. Returns [rows, heads width]; head h has group h / (heads / groups).
Tensor turned_heads(const Context& context, const Tensor& x, const Tensor& bias,
                    const Tensor& angles, int64_t groups);

// pi dt_h tanh(angle_i) for each head h and pair i: dt [rows, heads], angles [rows, pairs]; returns
// [rows, heads pairs].
Tensor angle_steps(const Context& context, const Tensor& dt, const Tensor& angles);

}  // namespace pronghorn
