// What RWKV-7 (arXiv 2503.14456, section 4) computes of single rows before and after its
// recurrence.
#pragma once

#include <cstdint>

#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// What diagonal_plus_rank_one is given, all [rows, columns].
struct Rwkv7KeyRows {
  Tensor log_decay;  // -e^(-1/2) sigmoid(decay)
  Tensor key;        // k (1 + (s - 1) k_a)
  Tensor remove;     // -unit(k k_k)
  Tensor replace;    // unit(k k_k) s
};

// With s = sigmoid(rate), the in-context learning rate, and unit() to length 1 in groups of
// head_dim columns. decay, rate and k [rows, columns]; k_k and k_a [columns].
Rwkv7KeyRows rwkv7_keys(const Context& context, const Tensor& decay, const Tensor& rate,
                        const Tensor& k, const Tensor& k_k, const Tensor& k_a, int64_t head_dim);

struct Rwkv7OutputInputs {
  Tensor x, r, k, v, gate;  // [rows, columns]; x: what the recurrence gave
  Tensor weight, bias;      // [columns], of the norm
  Tensor r_k;               // columns numbers: the weight of a token's own key in its bonus
};

// (group_norm(x) + (sum of r k r_k over a head) v) gate, with a group of head_dim columns a head;
// without the sum where r_k, and with it r, k and v, is undefined.
Tensor rwkv7_output(const Context& context, const Rwkv7OutputInputs& inputs, int64_t head_dim,
                    float epsilon);

// from + (to - from) sigmoid(share), element by element.
Tensor interpolate(const Context& context, const Tensor& from, const Tensor& to,
                   const Tensor& share);

}  // namespace pronghorn
