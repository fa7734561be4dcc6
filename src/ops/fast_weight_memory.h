// Fast-weight memories: small networks whose weights are a layer's state and learn by gradient
// steps while a sequence is read. One operator for TTT-Linear and TTT-MLP (arXiv 2407.04620) and
// for the neural memory of Titans (arXiv 2501.00663); the equations are in
// backend/fast_weight_memory.h.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/fast_weight_memory.h"
#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

struct FastWeightMemoryOptions {
  int64_t heads = 1;
  int64_t head_dim = 64;    // of keys, values and queries
  int64_t depth = 1;        // layers of the memory, 1 to 4, gelu (tanh form) between them
  int64_t hidden_dim = 0;   // between layers
  int64_t mini_batch = 16;  // tokens whose gradients are taken at the same weights; divides 16
  MemoryRule rule;          // TitansRule or TttRule

  // Widths that a layer of the memory maps from and to.
  int64_t in(int64_t layer) const { return layer == 0 ? head_dim : hidden_dim; }
  int64_t out(int64_t layer) const { return layer + 1 == depth ? head_dim : hidden_dim; }
};

struct FastWeightMemoryInputs {
  Tensor q, k, v;  // [rows, heads head_dim]
  Tensor theta;    // [rows, heads]: learning rate
  Tensor eta;      // [rows, heads]: decay of the momentum, if the rule has one
  Tensor alpha;    // [rows, heads]: share of the weights that is forgotten, if the rule forgets
  // With TttRule:
  // [mini_batch]: token i of a mini-batch reads the sum of its steps times
  // tau_i = max(0, 1 / (i + 1) + token_idx[i]), and so does the weights' update at its end;
  // undefined: tau = 1.
  Tensor token_idx;
  Tensor norm_weight, norm_bias;  // [heads, head_dim]
  // What a fresh sequence starts from, one tensor per layer: [heads, in, out], and with TttRule
  // [heads, out]. Layers map head_dim -> hidden_dim -> ... -> head_dim.
  std::vector<Tensor> weights, biases;
};

// The journal it keeps: a row is, for each head, the inputs and back-signals of the memory's layers
// for the token's key and value, and its gates; the anchor is the weights and their momentum.
JournalShape fast_weight_memory_journal(const FastWeightMemoryOptions& options);

// Numbers that the memory of a sequence consists of, momentum included.
int64_t fast_weight_memory_size(const FastWeightMemoryOptions& options);

// Floating-point operations of one token, a multiply-add counted as two.
double fast_weight_memory_cost(const FastWeightMemoryOptions& options);

// How surprised a memory was by the token of a journal's row: the norm of its loss' gradient with
// respect to what it answered to the token's key, averaged over the heads.
double fast_weight_memory_surprise(const FastWeightMemoryOptions& options, const float* row);

// o_t = M_t(q_t) [rows, heads head_dim], where M_t has seen the tokens up to t, or with a
// read_interval those before the interval that t is in. Mini-batches begin at the multiples of
// mini_batch of a sequence. State and gates are f32. A token has the same bits however the sequence
// is cut, for steps of any length. With a tape, segments must have no state.
Tensor fast_weight_memory(const Context& context, const FastWeightMemoryInputs& inputs,
                          const FastWeightMemoryOptions& options, const CheckedBatch& batch,
                          JournalSlot slot);

}  // namespace pronghorn
