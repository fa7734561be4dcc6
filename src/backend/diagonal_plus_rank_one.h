// A matrix state whose transition is diagonal plus rank one (RWKV-7): kernel family B.
//
// For each head, with state S [key_dim, value_dim] and w_t = exp(log_decay_t) per key channel:
//   z_t = S_{t-1}^T a_t                                 (of the state before it decays)
//   S_t = Diag(w_t) S_{t-1} + b_t z_t^T + k_t v_t^T,    o_t = S_t^T (query_scale q_t)
//
// Two forms of it: chunks of matrix products for long segments, with a backward pass, and steps
// that compute tokens from an anchor (a stored S) and the rows written since. In both, what lies
// between two rows decays by a product of at most kRankOneChunk decays, each at most 1: nothing is
// divided by a decay, so that no decay is too strong.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/operands.h"
#include "backend/replay.h"

namespace pronghorn {

// The sizes and inputs of one call; rows are those of the batch.
struct RankOneProblem {
  int64_t heads = 1;
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  float query_scale = 1;
  ConstMatrix q, log_decay, k, a, b;  // [rows, heads key_dim]
  ConstMatrix v;                      // [rows, heads value_dim]
};

// Rows of a chunk: within it every pair of rows has a decay of its own in every channel. Small, for
// the work on states is the same whatever it is.
constexpr int64_t kRankOneChunk = 16;

// Rows from one state that is kept for the backward pass to the next; it computes those between
// again. A multiple of kRankOneChunk.
constexpr int64_t kRankOneSpan = 64;

// Rows first_row ... first_row + length - 1, from `state_in` (null: zeros) to `state_out` (null:
// not wanted), both [heads, key_dim, value_dim].
struct RankOneSegment {
  int64_t first_row = 0;
  int64_t length = 0;
  const float* state_in = nullptr;
  float* state_out = nullptr;
  int64_t first_span = 0;  // spans of the segments before this one
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
struct RankOneSaved {
  float* states = nullptr;  // [spans, heads, key_dim, value_dim]: S before each span
  float* z = nullptr;       // [rows, heads value_dim]
};

// Where gradients go; data null: not wanted.
struct RankOneGradients {
  Matrix q, log_decay, k, v, a, b;
};

class DiagonalPlusRankOneKernels {
 public:
  virtual ~DiagonalPlusRankOneKernels() = default;

  // Chunked form. out [rows, heads value_dim].
  virtual void forward(const RankOneProblem& problem, std::span<const RankOneSegment> segments,
                       const Matrix& out, const RankOneSaved& saved) = 0;

  // The gradients of everything, from out's and those of the segments' last states; `saved` is what
  // forward() left for the same segments.
  virtual void backward(const RankOneProblem& problem, std::span<const RankOneSegment> segments,
                        const ConstMatrix& out_grad, const RankOneSaved& saved,
                        const RankOneGradients& gradients) = 0;

  // Steps. `sequences`: for each sequence its steps, which run in order (a later one may fold rows
  // that an earlier one wrote). An anchor is a state [heads, key_dim, value_dim]; a token's row
  // [k | b | w | v | z], each for all heads, is written. Every number is summed in an order that
  // depends on nothing but the token's path, so a token's bits do not depend on how tokens are
  // grouped.
  virtual void step(const RankOneProblem& problem,
                    std::span<const std::span<const ReplayStep>> sequences, const Matrix& out) = 0;
};

std::unique_ptr<DiagonalPlusRankOneKernels> make_cpu_diagonal_plus_rank_one_kernels();

}  // namespace pronghorn
