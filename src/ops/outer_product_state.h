// Gated linear attention with or without the delta rule: one chunked operator for Mamba-2 (SSD,
// arXiv 2405.21060) and Gated DeltaNet (arXiv 2412.06464), and for the linear-attention family that
// shares their algebra (RetNet, Lightning, DeltaNet; per-channel gates will follow here).
#pragma once

#include <cstdint>

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

struct OuterProductStateOptions {
  int64_t value_heads = 1;
  // Divides value_heads; value head h uses key head h / (value_heads / key_heads).
  int64_t key_heads = 1;
  int64_t key_dim = 64;
  int64_t value_dim = 64;
  float query_scale = 1;
  bool delta_rule = false;  // erases what the state holds for a key before it writes
};

struct OuterProductStateInputs {
  Tensor q;          // [rows, key_heads key_dim]
  Tensor k;          // [rows, key_heads key_dim]
  Tensor v;          // [rows, value_heads value_dim]
  Tensor log_decay;  // [rows, value_heads], <= 0; undefined: no decay
  Tensor beta;       // [rows, value_heads], strength of a write and, with `delta_rule`, of the
                     // erasure before it; undefined: 1
  Tensor skip;       // [value_heads], D of Mamba-2; undefined: 0
};

// The journal it keeps: a row is, for all heads, [k | u | log_decay] (u: the written value, so that
// a replay needs no solve); the anchor is S [value_heads, key_dim, value_dim].
JournalShape outer_product_state_journal(const OuterProductStateOptions& options);

// For each value head, with state S [key_dim, value_dim], a_t = exp(log_decay_t):
//   u_t = beta_t v_t                                 without the delta rule
//   u_t = beta_t (v_t - a_t S_{t-1}^T k_t)           with the delta rule
//   S_t = a_t S_{t-1} + k_t u_t^T
//   o_t = S_t^T (query_scale q_t) + skip v_t
// Returns o [rows, value_heads value_dim]. Long segments run in chunks of matrix products; steps of
// up to kExactStep tokens from the anchor and the journal's rows, bit-identical however cut.
// State and gates are f32. With a tape, segments must have no state.
Tensor outer_product_state(const Context& context, const OuterProductStateInputs& inputs,
                           const OuterProductStateOptions& options, const CheckedBatch& batch,
                           JournalSlot slot);

}  // namespace pronghorn
