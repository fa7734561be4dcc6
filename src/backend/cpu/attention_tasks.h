// The parts of the CPU's attention that run on one thread, and what they share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/attention.h"

namespace pronghorn::cpu_attention {

constexpr int64_t kQueryTile = 64;  // query rows of a tile of scores
// Keys of a share of forward_exact(): boundaries are absolute, so that a row's arithmetic does not
// depend on the length of the context beyond it.
constexpr int64_t kSplitKeys = 512;

// The keys that any of rows first ... first + count - 1 sees, and those that all of them see.
struct RowsRange {
  KeyRange any, all;
};

inline RowsRange rows_range(const AttentionUnit& unit, int64_t first, int64_t count) {
  RowsRange range{{unit.keys, 0}, {0, unit.keys}};
  for (int64_t i = first; i < first + count; ++i) {
    const KeyRange row = unit.visible[i];
    range.all.begin = std::max(range.all.begin, row.begin);
    range.all.end = std::min(range.all.end, row.end);
    if (row.begin >= row.end) continue;
    range.any.begin = std::min(range.any.begin, row.begin);
    range.any.end = std::max(range.any.end, row.end);
  }
  return range;
}

// Packed tiles of one unit and key-value head: tile t from `first_tile` on is the transposed keys
// [head_dim, kAttentionTile] and then the values [kAttentionTile, head_dim], padded with zeros.
struct PackedKeys {
  float* data = nullptr;
  int64_t first_tile = 0;
};

inline int64_t packed_tile_size(const AttentionShape& shape) {
  return 2 * kAttentionTile * shape.head_dim;
}

void pack_tile(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
               int64_t tile, const PackedKeys& packed);

// Output of query rows first ... first + count - 1 (of the unit) and one head.
void forward_tile(const AttentionShape& shape, const AttentionUnit& unit, int64_t head,
                  int64_t first, int64_t count, const PackedKeys& packed,
                  const AttentionOperands& operands);

// The part of forward_exact() of one unit, key-value head and share of the keys. partial: for each
// row and head of the group, its maximum, its sum, and head_dim sums of weighted values.
void exact_split(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
                 int64_t split, const AttentionOperands& operands, float* partial);

inline int64_t partial_size(const AttentionShape& shape, const AttentionUnit& unit) {
  return unit.rows * (shape.heads / shape.kv_heads) * (shape.head_dim + 2);
}

// Merges the `splits` partials (in order of their keys) of one unit and key-value head.
void exact_merge(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
                 const float* partials, int64_t splits, const AttentionOperands& operands);

struct BackwardTask {
  const AttentionUnit* unit = nullptr;
  int64_t kv_head = 0;
  int64_t first_tile = 0, tile_step = 1;  // key tiles first_tile, first_tile + tile_step, ...
};

struct BackwardOperands {
  const float* q = nullptr;
  int64_t q_stride = 0;
  const float* grad_o = nullptr;
  int64_t grad_o_stride = 0;
  const float* log_sum_exp = nullptr;  // [rows, heads]
  const float* delta = nullptr;        // [rows, heads]: grad_o . o
  float* grad_q = nullptr;             // added to; null: not wanted
  int64_t grad_q_stride = 0;
  Matrix grad_k, grad_v;
};

void backward_task(const AttentionShape& shape, const BackwardTask& task,
                   const BackwardOperands& operands);

// delta[h] = grad_o . o of one row.
void backward_delta(const AttentionShape& shape, const float* grad_o, const float* o, float* delta);

// Rows begin ... end - 1 of AttentionKernels::merge().
void merge_rows(const AttentionMerge& arguments, int64_t begin, int64_t end, float* out,
                int64_t out_stride);

struct MergeBackwardOperands {
  const float* out = nullptr;
  int64_t out_stride = 0;
  const float* grad_out = nullptr;
  int64_t grad_out_stride = 0;
  Matrix grad_q;
  float *grad_k = nullptr, *grad_v = nullptr;  // [fixed, heads head_dim], added to
  std::span<const AttentionPartGradient> grad_parts;
};

void merge_rows_backward(const AttentionMerge& arguments, int64_t begin, int64_t end,
                         const MergeBackwardOperands& operands);

}  // namespace pronghorn::cpu_attention
