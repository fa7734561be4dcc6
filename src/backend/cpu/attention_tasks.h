// The parts of the CPU's attention that run on one thread, and what they share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/attention.h"

namespace pronghorn::cpu_attention {

constexpr int64_t kQueryTile = 64;  // query rows of a tile of scores
// Keys of a share of forward_exact(): boundaries are absolute, so that a row's arithmetic does not
// depend on the length of the context beyond it.
constexpr int64_t kSplitKeys = 128;

// The keys that any of rows first ... first + count - 1 sees, and those that all of them see.
struct RowsRange {
  KeyRange any, all;
};

inline RowsRange rows_range(const AttentionUnit& unit, int64_t first, int64_t count) {
  const int64_t keys = unit.end_tile() * kAttentionTile;
  RowsRange range{{keys, 0}, {0, keys}};
  for (int64_t i = first; i < first + count; ++i) {
    const KeyRange row = unit.visible[i];
    range.all.begin = std::max(range.all.begin, row.begin);
    range.all.end = std::min(range.all.end, row.end);
    if (row.begin >= row.end) continue;
    range.any.begin = std::min(range.any.begin, row.begin);
    range.any.end = std::max(range.any.end, row.end);
    range.any.prefix = std::max(range.any.prefix, row.prefix);
  }
  return range;
}

// The first keys of the tiles that rows see: those of the prefix up to prefix_end, and those from
// `begin` to `end`.
struct SeenTiles {
  int64_t prefix_end = 0, begin = 0, end = 0;

  explicit SeenTiles(const KeyRange& any)
      : begin(std::min(any.begin, any.end) / kAttentionTile * kAttentionTile), end(any.end) {
    const int64_t seen = std::min(any.prefix, any.end);
    prefix_end = (seen + kAttentionTile - 1) / kAttentionTile * kAttentionTile;
    if (prefix_end >= begin && prefix_end > 0) prefix_end = begin = 0;  // no gap
  }

  // The first at `key`, a multiple of kAttentionTile, or after it; `end` or more: none.
  int64_t from(int64_t key) const { return key < prefix_end ? key : std::max(key, begin); }
};

// The tiles that some row of a unit sees.
inline SeenTiles seen_tiles(const AttentionUnit& unit) {
  return SeenTiles(rows_range(unit, 0, unit.rows).any);
}

inline const KeyTile& tile_at(const AttentionUnit& unit, int64_t key) {
  return unit.tile(key / kAttentionTile);
}

// Whether some of the rows do not see all of the kAttentionTile indexes of a tile.
inline bool needs_mask(const RowsRange& range, const KeyTile& tile, int64_t key) {
  return key < range.all.begin || key + kAttentionTile > range.all.end ||
         tile.count < kAttentionTile;
}

// The list that a query head goes by in row `row` of q, and its end.
struct RowList {
  const int32_t *begin = nullptr, *end = nullptr;
};
inline RowList row_list(const AttentionShape& shape, const KeyLists& lists, int64_t row,
                        int64_t head) {
  const int64_t list = row * lists.lists + head / (shape.heads / lists.lists);
  const int32_t* begin = lists.blocks + list * lists.width;
  return {begin,
          std::partition_point(begin, begin + lists.width, [](int32_t b) { return b >= 0; })};
}

// The first entry of a list that touches the tile whose first key is `key`; its end: none does.
inline const int32_t* first_listed(const RowList& list, int64_t block, int64_t key) {
  const int32_t* entry = std::lower_bound(list.begin, list.end, key / block);
  return entry != list.end && *entry * block < key + kAttentionTile ? entry : list.end;
}

// Whether a row sees something of the tile, as far as lists say.
inline bool lists_tile(const AttentionShape& shape, const KeyLists& lists, int64_t row,
                       int64_t head, int64_t key) {
  if (lists.blocks == nullptr) return true;
  const RowList list = row_list(shape, lists, row, head);
  return first_listed(list, lists.block, key) != list.end;
}

// The same for any row of a unit and any query head of a key-value head.
inline bool lists_tile(const AttentionShape& shape, const KeyLists& lists,
                       const AttentionUnit& unit, int64_t kv_head, int64_t key) {
  if (lists.blocks == nullptr) return true;
  const int64_t group = shape.heads / shape.kv_heads, step = shape.heads / lists.lists;
  for (int64_t row = unit.first_row; row < unit.first_row + unit.rows; ++row) {
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head += step) {
      if (lists_tile(shape, lists, row, head, key)) return true;
    }
  }
  return false;
}

// Which of `count` rows of a unit, from `first` on, see a tile of keys.
struct TileRows {
  int64_t count = 0;
  int32_t rows[kQueryTile];  // of the unit, less `first`; ascending

  TileRows(const AttentionShape& shape, const KeyLists& lists, const AttentionUnit& unit,
           int64_t head, int64_t first, int64_t rows_of_tile, int64_t key) {
    for (int64_t i = 0; i < rows_of_tile; ++i) {
      if (!lists_tile(shape, lists, unit.first_row + first + i, head, key)) continue;
      rows[count++] = static_cast<int32_t>(i);
    }
  }
};

// Packed tiles of one unit and key-value head, tiles 0 ... prefix_tiles - 1 and then those from
// `first_tile` on: each is the transposed keys [key_dim, kAttentionTile] and then the values
// [kAttentionTile, value_dim], padded with zeros.
struct PackedKeys {
  float* data = nullptr;
  int64_t prefix_tiles = 0, first_tile = 0;

  int64_t place(int64_t tile) const {
    return tile < prefix_tiles ? tile : tile - first_tile + prefix_tiles;
  }
};

inline int64_t packed_tile_size(const AttentionShape& shape) {
  return kAttentionTile * (shape.key_dim + shape.value_dim);
}

void pack_tile(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
               int64_t tile, const PackedKeys& packed);

// Output of query rows first ... first + count - 1 (of the unit) and one head.
void forward_tile(const AttentionShape& shape, const AttentionUnit& unit, int64_t head,
                  int64_t first, int64_t count, const PackedKeys& packed,
                  const AttentionOperands& operands);

// A part of forward_exact(): some key-value heads of one unit and a share of its keys. With lists
// it has one head.
struct ExactPart {
  const AttentionUnit* unit = nullptr;
  int64_t kv_head = 0, heads = 1, split = 0;
  int64_t first_key = 0;  // of the first tile of the share that some row sees, as far as lists go
};

// partial: of each head, partial_stride apart, for each row and head of the group its maximum, its
// sum, and value_dim sums of weighted values. following: what the thread computes next, or null.
void exact_part(const AttentionShape& shape, const ExactPart& part, const ExactPart* following,
                const AttentionOperands& operands, float* partial, int64_t partial_stride);

// Lists of single keys that all heads of a group share: their rows are gathered.
inline bool gathers(const AttentionShape& shape, const KeyLists& lists) {
  return lists.blocks != nullptr && lists.block == 1 && lists.lists <= shape.kv_heads;
}
constexpr int64_t kSplitPlaces = 128;  // of a list: a share of forward_exact() then

// The part of forward_exact() of a unit of one row whose keys are gathered: places split
// kSplitPlaces ... of its list. partial: as exact_part()'s of one head.
void gathered_split(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
                    int64_t split, const AttentionOperands& operands, float* partial);

inline int64_t partial_size(const AttentionShape& shape, const AttentionUnit& unit) {
  return unit.rows * (shape.heads / shape.kv_heads) * (shape.value_dim + 2);
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
  ConstMatrix q, grad_o;
  const float* log_sum_exp = nullptr;  // [rows, heads]
  const float* delta = nullptr;        // [rows, heads]: grad_o . o - grad_log_sum_exp
  KeyLists lists;
  Matrix grad_q;  // added to
  Matrix grad_k, grad_v;
};

void backward_task(const AttentionShape& shape, const BackwardTask& task,
                   const BackwardOperands& operands);

// delta[h] = grad_o . o of one row.
void backward_delta(const AttentionShape& shape, const float* grad_o, const float* o, float* delta);

// The gradient of one head's sink.
float sink_gradient(const AttentionShape& shape, int64_t head, int64_t rows, float sink,
                    const float* log_sum_exp, const float* delta);

// Rows begin ... end - 1 of AttentionKernels::merge().
void merge_rows(const AttentionMerge& arguments, int64_t begin, int64_t end, const Matrix& out);

// Rows begin ... end - 1 of merge_backward(). gradients.k and .v are added to.
void merge_rows_backward(const AttentionMerge& arguments, int64_t begin, int64_t end,
                         const ConstMatrix& out, const AttentionMergeGradients& gradients);

// AttentionKernels::summarise() of one block.
void summarise_block(const KeyBlock& block, BlockStatistic statistic, int64_t columns, DType type,
                     int64_t stride);

// AttentionKernels::choose_blocks() of one row of a unit; out [lists, top].
void choose_row(const AttentionShape& shape, const BlockChoice& choice, const AttentionUnit& unit,
                int64_t row, const ConstMatrix& q, int32_t own_block, int32_t* out);

// AttentionKernels::weigh_keys() of unit.tiles[tile]; weights [kAttentionTile].
void weigh_tile(const AttentionShape& shape, const AttentionUnit& unit, int64_t tile,
                const ConstMatrix& q, const ConstMatrix& log_sum_exp, float* weights);

// Scores of keys begin ... end - 1 (begin: of a tile) for rows first ... first + count - 1 of a
// unit: [count, stride] from key 0 on.
void indexer_scores(const IndexerOperands& indexer, const AttentionUnit& unit, int64_t first,
                    int64_t count, int64_t begin, int64_t end, float* scores, int64_t stride);

// The places of the `top` largest of `count` > top scores, ascending.
void take_top(const float* scores, int64_t count, int64_t top, int32_t* out);

// AttentionKernels::indexer_loss() of one unit.
void indexer_loss_unit(const IndexerLoss& arguments, const AttentionUnit& unit);

// AttentionKernels::store_rows().
void store_rows(const ConstMatrix& from, int64_t rows, int64_t columns, DType type, std::byte* to,
                int64_t stride);

// AttentionKernels::load_rows().
void load_rows(const std::byte* from, int64_t rows, int64_t columns, DType type, int64_t stride,
               const Matrix& to);

}  // namespace pronghorn::cpu_attention
