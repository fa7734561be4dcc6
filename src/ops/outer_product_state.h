// Gated linear attention with or without the delta rule: one chunked operator for Mamba-2 (SSD,
// arXiv 2405.21060), Gated DeltaNet (arXiv 2412.06464), and the linear-attention family that shares
// their algebra: without a decay DeltaNet (arXiv 2406.06484), with a constant one RetNet (arXiv
// 2307.08621), with one per key channel GLA (arXiv 2312.06635), HGRN2 (arXiv 2404.07904) and KDA
// (arXiv 2510.26692).
#pragma once

#include <cstdint>

#include "backend/outer_product_state.h"
#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

constexpr int64_t kMostUpdates = kMostOuterProductUpdates;

struct OuterProductStateOptions {
  int64_t value_heads = 1;
  // Divides value_heads; value head h uses key head h / (value_heads / key_heads).
  int64_t key_heads = 1;
  int64_t key_dim = 64;
  int64_t value_dim = 64;
  float query_scale = 1;
  bool delta_rule = false;     // erases what the state holds for a key before it writes
  bool channel_decay = false;  // each key channel decays by itself
  // Writes of a token (Mamba-3 with several inputs, arXiv 2603.15569): every input and the result
  // have that many rows for each row of the batch, one after another. At most kMostUpdates, and 1
  // with `channel_decay`.
  int64_t updates = 1;
};

struct OuterProductStateInputs {
  Tensor q;  // [rows, key_heads key_dim]
  Tensor k;  // [rows, key_heads key_dim]
  Tensor v;  // [rows, value_heads value_dim]
  // <= 0, [rows, value_heads]; undefined: no decay. With `channel_decay` [rows, value_heads
  // key_dim], and it must be there. One row: the same for every row, without a gradient.
  Tensor log_decay;
  Tensor beta;  // [rows, value_heads], strength of a write and, with `delta_rule`, of the
                // erasure before it; undefined: 1
  Tensor skip;  // [value_heads], D of Mamba-2; undefined: 0
};

// The journal it keeps: a row is, for all heads, [k | u | log_decay] (u: the written value, so that
// a replay needs no solve) or, with `channel_decay`, [k | u | decay]; the anchor is S [value_heads,
// key_dim, value_dim]. With several updates a row is those of all of them, one after another.
JournalShape outer_product_state_journal(const OuterProductStateOptions& options);

// For each value head, with state S [key_dim, value_dim], a_t = exp(log_decay_t):
//   u_t = beta_t v_t                                 without the delta rule
//   u_t = beta_t (v_t - a_t S_{t-1}^T k_t)           with the delta rule
//   S_t = a_t S_{t-1} + k_t u_t^T
//   o_t = S_t^T (query_scale q_t) + skip v_t
// With `channel_decay`, a_t is Diag(exp(log_decay_t)). Log-decays below -104, of which f32 leaves
// nothing, count as -104 there. Returns o [rows, value_heads value_dim]. Long segments run in
// chunks of matrix products; steps of up to kExactStep tokens from the anchor and the journal's
// rows, bit-identical however cut. State and gates are f32. With a tape, segments must have no
// state. With several updates t counts rows of the inputs, of which each token has `updates`: a
// read sees the writes of its own token up to its own number.
Tensor outer_product_state(const Context& context, const OuterProductStateInputs& inputs,
                           const OuterProductStateOptions& options, const CheckedBatch& batch,
                           JournalSlot slot);

}  // namespace pronghorn
