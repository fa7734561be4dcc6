// A matrix state whose transition is diagonal plus rank one: the generalised delta rule of RWKV-7
// (arXiv 2503.14456, section 4), whose decays, erased keys and written keys are vectors of their
// own. DeltaNet's rule and its gated forms are cases of it (a = w k, b = -beta k), which
// outer_product_state computes in half the products.
#pragma once

#include <cstdint>

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

struct DiagonalPlusRankOneOptions {
  int64_t heads = 1;
  int64_t key_dim = 64;
  int64_t value_dim = 64;
  float query_scale = 1;
};

struct DiagonalPlusRankOneInputs {
  Tensor q;          // [rows, heads key_dim]
  Tensor log_decay;  // [rows, heads key_dim], <= 0
  Tensor k;          // [rows, heads key_dim]
  Tensor v;          // [rows, heads value_dim]
  Tensor a;          // [rows, heads key_dim], reads the state
  Tensor b;          // [rows, heads key_dim], writes what a has read
};

// The journal it keeps: a row is, for all heads, [k | b | w | v | z] (z: what a has read, so that a
// replay needs no solve); the anchor is S [heads, key_dim, value_dim].
JournalShape diagonal_plus_rank_one_journal(const DiagonalPlusRankOneOptions& options);

// For each head, with state S [key_dim, value_dim] and w_t = exp(log_decay_t) per key channel:
//   z_t = S_{t-1}^T a_t
//   S_t = Diag(w_t) S_{t-1} + b_t z_t^T + k_t v_t^T
//   o_t = S_t^T (query_scale q_t)
// Returns o [rows, heads value_dim]. Long segments run in chunks of matrix products; steps of up to
// kExactStep tokens from the anchor and the journal's rows, bit-identical however cut. State and
// decays are f32. With a tape, segments must have no state.
Tensor diagonal_plus_rank_one(const Context& context, const DiagonalPlusRankOneInputs& inputs,
                              const DiagonalPlusRankOneOptions& options, const CheckedBatch& batch,
                              JournalSlot slot);

}  // namespace pronghorn
