// Tiled softmax attention.
//
// The keys of a sequence come as tiles of kAttentionTile rows, so that they may lie in pages, in a
// tensor or in a buffer; which of them a query row may see is one range of key indexes. That covers
// causal and both-way masks, windows, prompts after a prefix and (with gathered tiles) token trees.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/operands.h"

namespace pronghorn {

constexpr int64_t kAttentionTile = 64;  // keys of a tile; all but the last are full

struct AttentionShape {
  int64_t heads = 1;
  int64_t kv_heads = 1;  // query head h reads key and value head h / (heads / kv_heads)
  int64_t head_dim = 64;
  float scale = 1;
};

// Key indexes begin <= j < end.
struct KeyRange {
  int64_t begin = 0, end = 0;
};

// Query rows that look at the same keys.
struct AttentionUnit {
  int64_t first_row = 0;  // of q, o and log_sum_exp
  int64_t rows = 0;
  int64_t keys = 0;
  // Tile t holds keys kAttentionTile t ...: rows of kv_heads head_dim values, a stride apart. Only
  // tiles that some row sees are read.
  const float* const* key_tiles = nullptr;
  const float* const* value_tiles = nullptr;
  int64_t key_stride = 0, value_stride = 0;
  const KeyRange* visible = nullptr;  // [rows]
};

// Pointers to row 0 of matrices and the distance between their rows.
struct AttentionOperands {
  const float* q = nullptr;  // [rows, heads head_dim]
  int64_t q_stride = 0;
  float* o = nullptr;  // [rows, heads head_dim]
  int64_t o_stride = 0;
  float* log_sum_exp = nullptr;  // [rows, heads], or null: not wanted
};

// A result of attention that is to be merged with others.
struct AttentionPart {
  const float* o = nullptr;  // [rows, heads head_dim]
  int64_t o_stride = 0;
  const float* log_sum_exp = nullptr;  // [rows, heads]
};

struct AttentionPartGradient {
  Matrix o, log_sum_exp;
};

struct AttentionMerge {
  AttentionShape shape;
  int64_t rows = 0;
  const float* q = nullptr;  // [rows, heads head_dim]
  int64_t q_stride = 0;
  std::span<const AttentionPart> parts;
  const float *k = nullptr, *v = nullptr;  // [fixed, heads head_dim]
  int64_t fixed = 0;
};

class AttentionKernels {
 public:
  virtual ~AttentionKernels() = default;

  // For each row i and head h over the keys j that i sees, with s_j = scale q_i . k_j:
  //   log_sum_exp = ln sum_j exp(s_j),  o = sum_j exp(s_j - log_sum_exp) v_j
  // A row that sees nothing gets o = 0 and log_sum_exp = 0.
  virtual void forward(const AttentionShape& shape, std::span<const AttentionUnit> units,
                       const AttentionOperands& operands) = 0;

  // The same function for units of few rows: the bits of a row depend on its
  // query, on the keys and values it sees and on their indexes alone, not on what else is computed.
  // The keys are shared out over the threads, so one row with many keys uses all of them.
  virtual void forward_exact(const AttentionShape& shape, std::span<const AttentionUnit> units,
                             const AttentionOperands& operands) = 0;

  // Gradients of forward() for units whose keys are rows first_row ... of k and v, given those of
  // o; `operands` as forward() left them:
  //   p_ij = exp(s_ij - log_sum_exp_i),  ds_ij = p_ij (do_i . v_j - do_i . o_i)
  //   dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i,  dv_j = sum_i p_ij do_i
  // grad_log_sum_exp: [rows, heads], the gradient of log_sum_exp, which adds p_ij times it to
  // ds_ij; or null.
  virtual void backward(const AttentionShape& shape, std::span<const AttentionUnit> units,
                        const AttentionOperands& operands, const float* grad_o,
                        int64_t grad_o_stride, const float* grad_log_sum_exp, const Matrix& grad_q,
                        const Matrix& grad_k, const Matrix& grad_v) = 0;

  // out_i = sum_a p_ia value_ia, p_i the softmax over: scale q_i . k_j with value v_j for each of
  // `fixed` keys (rows of k and v, [fixed, heads head_dim]) and log_sum_exp_i with value o_i for
  // each part. So it is attention to the union of what the parts attended to, and the fixed keys.
  virtual void merge(const AttentionMerge& arguments, float* out, int64_t out_stride) = 0;

  // The gradients of merge() from out's. grad_parts: for each part, [rows, heads head_dim] of its o
  // and [rows, heads] of its log_sum_exp.
  virtual void merge_backward(const AttentionMerge& arguments, const float* out, int64_t out_stride,
                              const float* grad_out, int64_t grad_out_stride, const Matrix& grad_q,
                              const Matrix& grad_k, const Matrix& grad_v,
                              std::span<const AttentionPartGradient> grad_parts) = 0;
};

std::unique_ptr<AttentionKernels> make_cpu_attention_kernels();

}  // namespace pronghorn
