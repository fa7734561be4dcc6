// Gated linear attention (an outer-product state), with or without the delta rule: kernel family A.
//
// For each value head, with state S [key_dim, value_dim], a_t = exp(log_decay_t):
//   u_t = beta_t v_t                                 without the delta rule
//   u_t = beta_t (v_t - a_t S_{t-1}^T k_t)           with the delta rule
//   S_t = a_t S_{t-1} + k_t u_t^T,   o_t = S_t^T (query_scale q_t) + skip v_t
// or, with a decay per key channel, Diag(a_t) in the place of a_t.
//
// Two forms of it: chunks of matrix products for long segments, with a backward pass, and steps
// that compute tokens from an anchor (a stored S) and the rows written since.
//
// A decay per head enters a chunk in three places only: the matrix of decays between pairs of rows,
// the decay from the start of the chunk to a row, and from a row to its end. One per key channel
// has factors on q and k there, so it has kernels of its own, which walk blocks of 16 rows.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/operands.h"
#include "backend/replay.h"

namespace pronghorn {

// The sizes and inputs of one call; rows are those of the batch.
struct OuterProductProblem {
  int64_t value_heads = 1;
  int64_t key_heads = 1;  // value head h uses key head h / (value_heads / key_heads)
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  float query_scale = 1;
  bool delta_rule = false;
  bool channel_decay = false;
  ConstMatrix q, k;  // [rows, key_heads key_dim]
  ConstMatrix v;     // [rows, value_heads value_dim]
  // [rows, value_heads], absent: no decay; with channel_decay [rows, value_heads key_dim].
  ConstMatrix log_decay;
  ConstMatrix beta;             // [rows, value_heads]; absent: 1
  const float* skip = nullptr;  // [value_heads]; null: 0
  int64_t rows = 0;
};

// Rows that a token may have (ops/outer_product_state.h): a step's tokens are then such rows, and a
// path is up to kExactStep times as many.
constexpr int64_t kMostOuterProductUpdates = 8;

// Rows of a chunk: near the width of a head, where the work within chunks equals that on states.
constexpr int64_t kOuterProductChunk = 64;

// Rows first_row ... first_row + length - 1, from `state_in` (null: zeros) to `state_out` (null:
// not wanted), both [value_heads, key_dim, value_dim].
struct OuterProductSegment {
  int64_t first_row = 0;
  int64_t length = 0;
  const float* state_in = nullptr;
  float* state_out = nullptr;
  int64_t first_chunk = 0;  // chunks of the segments before this one
  // It comes after the segments before it in the list, from which its state may come
  // (backend/segment_runs.h).
  bool follows = false;
  // In backward() alone: the gradient of the state after the segment (null: zeros), and where that
  // of the state before it is added (null: not wanted). Of a segment with `follows`, a place may be
  // the gradient of a state that an earlier one leaves.
  const float* state_out_gradient = nullptr;
  float* state_in_gradient = nullptr;
};

// What the backward pass needs of the forward; null: not kept.
struct OuterProductSaved {
  float* states = nullptr;     // [chunks, value_heads, key_dim, value_dim]: S before each chunk
  float* residuals = nullptr;  // with the delta rule: u_t / beta_t, [rows, value_heads value_dim]
};

// Where gradients go; data null: not wanted.
struct OuterProductGradients {
  Matrix q, k, v, log_decay, beta;
  Matrix skip;  // one row
};

class OuterProductStateKernels {
 public:
  virtual ~OuterProductStateKernels() = default;

  // Chunked form. out [rows, value_heads value_dim].
  virtual void forward(const OuterProductProblem& problem,
                       std::span<const OuterProductSegment> segments, const Matrix& out,
                       const OuterProductSaved& saved) = 0;

  // The gradients of everything, from out's and those of the segments' last states; `saved` is what
  // forward() left for the same segments.
  virtual void backward(const OuterProductProblem& problem,
                        std::span<const OuterProductSegment> segments, const ConstMatrix& out_grad,
                        const OuterProductSaved& saved, const OuterProductGradients& gradients) = 0;

  // Steps. `sequences`: for each sequence its steps, which run in order (a later one may fold rows
  // that an earlier one wrote). An anchor is a state [value_heads, key_dim, value_dim]; a token's
  // row [k | u | log_decay] holds k and log_decay already, and its u is written. With channel_decay
  // the row is [k | u | decay], and both u and decay are written. Every number is summed in an
  // order that depends on nothing but the token's path, so a token's bits do not depend on how
  // tokens are grouped.
  virtual void step(const OuterProductProblem& problem,
                    std::span<const std::span<const ReplayStep>> sequences, const Matrix& out) = 0;
};

std::unique_ptr<OuterProductStateKernels> make_cpu_outer_product_state_kernels();

}  // namespace pronghorn
