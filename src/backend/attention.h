// Tiled softmax attention.
//
// The keys of a sequence come as tiles of at most kAttentionTile rows, so that they may lie in
// pages of a journal, in a tensor or in a buffer. Which of them a query row sees is one range of
// key indexes, and some of the first keys of all (KeyRange::prefix). That covers causal and
// both-way masks, blocks, windows, prompts after a prefix and token trees (with gathered tiles).
// Rows may see only some blocks of those keys: lists for each row and head (KeyLists).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "backend/operands.h"
#include "tensor/dtype.h"

namespace pronghorn {

constexpr int64_t kAttentionTile = 64;  // most keys of a tile

// Rows of q8_0 and q4_0. Each kRowBlock neighbours x of a head are held as y = H x, H the
// orthonormal symmetric Hadamard matrix, H[i][j] = (-1)^popcount(i & j) / sqrt(kRowBlock), so that
// one large number does not take the precision of those beside it (QuaRot, arXiv 2404.00456,
// section 4). q . k = (H q) . (H k) and sum_j p_j v_j = H sum_j p_j (H v_j): kernels turn queries
// and results, not rows. A block is a scale d in f16 and whole numbers c, y = d c:
//   q8_0: d = max |y| / 127, c of 8 bits
//   q4_0: d = -y_m / 8 for the y_m of the largest size, the first one; byte i is (c_i + 8) +
//         16 (c_(i+16) + 8)
// with d rounded to f16 (at most its largest number) and c = y / d to the nearest whole number
// (ties to even) that there is; a block that holds something that is no finite number has d = NaN.

struct AttentionShape {
  int64_t heads = 1;
  int64_t kv_heads = 1;    // query head h reads key and value head h / (heads / kv_heads)
  int64_t key_dim = 64;    // width of a head of q and k
  int64_t value_dim = 64;  // width of a head of v and o
  float scale = 1;
  float soft_cap = 0;         // scores are soft_cap tanh(s / soft_cap); 0: they are s
  bool value_in_key = false;  // a head's value is the first value_dim numbers of its key

  // Numbers from one head's value to the next in a row of values.
  int64_t value_step() const { return value_in_key ? key_dim : value_dim; }
};

// Key indexes begin <= j < end, and of those before them the ones below `prefix`.
struct KeyRange {
  int64_t begin = 0, end = 0;
  int64_t prefix = 0;
};

// Rows of keys and of values. With value_in_key, `values` is not read.
struct KeyTile {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  int32_t count = 0;
  int32_t first_row = -1;  // of the gradients of k and v; -1: they get none
};

// Query rows that look at the same keys, for key-value heads first_kv_head ... + kv_heads - 1 and
// the query heads that read them. Units that share a row have different heads.
struct AttentionUnit {
  int64_t first_row = 0;  // of q, o and log_sum_exp
  int64_t rows = 0;
  int64_t first_kv_head = 0, kv_heads = 1;
  // Key j is row j % kAttentionTile of tile j / kAttentionTile. tiles are tiles 0 ...
  // prefix_tiles - 1, and then those from tile `first_tile` on. Where a tile has fewer rows, the
  // indexes after them are of no key.
  std::span<const KeyTile> tiles;
  int64_t prefix_tiles = 0, first_tile = 0;
  // How the numbers of a tile's rows are held, which hold all kv_heads of the shape, and how many
  // numbers apart the rows lie.
  DType type = DType::f32;
  int64_t key_stride = 0, value_stride = 0;
  const KeyRange* visible = nullptr;  // [rows], within the tiles

  const KeyTile& tile(int64_t index) const {
    return tiles[static_cast<size_t>(index < prefix_tiles ? index
                                                          : index - first_tile + prefix_tiles)];
  }
  int64_t end_tile() const {
    return first_tile - prefix_tiles + static_cast<int64_t>(tiles.size());
  }
};

// Which blocks of keys rows see, as far as `visible` lets them: block b is keys b block ... +
// block - 1. In memory of the host.
struct KeyLists {
  const int32_t* blocks = nullptr;  // [rows, lists, width], ascending; null: rows see all
  // Of a row: divides heads, and kv_heads or is a multiple of that.
  int64_t lists = 1;
  int64_t width = 0;               // most blocks of a list; shorter ones end with -1
  int64_t block = kAttentionTile;  // keys: a multiple or a divisor of kAttentionTile
};

struct AttentionOperands {
  ConstMatrix q;                 // [rows, heads key_dim]
  Matrix o;                      // [rows, heads value_dim], written whole
  float* log_sum_exp = nullptr;  // [rows, heads], or null: not wanted
  const float* sinks = nullptr;  // [heads], or null: none
  KeyLists lists;
  // Queries that keys below a unit's `prefix` are met by in place of q; null: q. Not in backward().
  ConstMatrix prefix_q;
};

// What backward() is given and where it puts its results.
struct AttentionGradients {
  ConstMatrix o;                       // of o
  const float* log_sum_exp = nullptr;  // of log_sum_exp, [rows, heads], or null: it has none
  Matrix q, k, v;                      // v: not with value_in_key, whose gradient is part of k's
  GradVector sinks;
};

// A result of attention that is to be merged with others.
struct AttentionPart {
  ConstMatrix o;                       // [rows, heads value_dim]
  const float* log_sum_exp = nullptr;  // [rows, heads]
};

// Rows of keys that stand for a block, one vector: a block's rows in `tiles`, of which the first
// `columns` numbers count, one after another.
struct KeyBlock {
  std::span<const KeyTile> tiles;
  float* to = nullptr;
};

enum class BlockStatistic : uint8_t {
  mean,   // [columns]
  bounds  // [2, columns]: the smallest and the largest number
};

// How rows choose blocks of keys by vectors that stand for them: `entries`.
struct BlockChoice {
  enum class Score : uint8_t {
    product,  // of an entry: q . entry
    softmax,  // its share in the softmax over the entries that the row sees, of scale q . entry
    bound     // the largest q . k for keys k within its bounds (BlockStatistic::bounds)
  };
  Score score = Score::product;
  // Lists of a row: query heads of one list add up their scores.
  int64_t lists = 1;
  int64_t top = 1;  // blocks of a list, those that are always in it included
  // The first blocks, and the last ones up to that of the row itself, are always in it.
  int64_t first = 0, last = 1;
  // Block b is cells b block_cells ... + block_cells - 1 and has as score the sum over its cells of
  // the scores of entries e with e <= cell < e + entry_cells.
  int64_t entry_cells = 1, block_cells = 1;
};

// An indexer (DeepSeek sparse attention, arXiv 2512.02556, section 2.1), whose heads score keys:
//   I_ts = sum_h w_th max(0, q_th . k_s)
// shape: heads and key_dim; there is one key for all heads, and scale and cap do not count.
struct IndexerOperands {
  AttentionShape shape;
  ConstMatrix q;        // [rows, heads key_dim]
  ConstMatrix weights;  // [rows, heads]
};

// An indexer that learns from attention. For each row t over the keys s that it sees,
//   losses_t = KL(p_t || softmax(I_t)),  p_ts = sum_h exp(s_ths - log_sum_exp_th) / heads
// with the scores s_ths of attention's heads (the same paper, equations 3 and 4). The gradients are
// those of the sum of the losses; attention gets none.
struct IndexerLoss {
  IndexerOperands indexer;
  ConstMatrix k;  // [rows, key_dim]: the indexer's
  AttentionShape attention;
  std::span<const AttentionUnit> units;  // of attention, over f32 rows of one batch
  AttentionOperands operands;            // of attention: q, log_sum_exp and lists
  float* losses = nullptr;               // [rows], of rows in units
  Matrix grad_q, grad_k, grad_weights;   // written whole where units are, 0 elsewhere before
};

struct AttentionMerge {
  AttentionShape shape;  // kv_heads = heads
  int64_t rows = 0;
  ConstMatrix q;  // [rows, heads key_dim]
  std::span<const AttentionPart> parts;
  const float* k = nullptr;  // [fixed, heads key_dim]
  const float* v = nullptr;  // [fixed, heads value_dim]
  int64_t fixed = 0;
};

struct AttentionPartGradient {
  Matrix o, log_sum_exp;
};

// What merge_backward() is given and where it puts its results.
struct AttentionMergeGradients {
  ConstMatrix out;  // of out
  Matrix q, k, v;
  std::span<const AttentionPartGradient> parts;
};

class AttentionKernels {
 public:
  virtual ~AttentionKernels() = default;

  // For each row i and head h over the keys j that i sees, with s_j = scale q_i . k_j, capped if
  // soft_cap > 0, and the head's sink a, if there are sinks:
  //   log_sum_exp = ln (exp(a) + sum_j exp(s_j)),  o = sum_j exp(s_j - log_sum_exp) v_j
  // A row that sees nothing gets o = 0, and log_sum_exp = a, or 0 without sinks. Soft cap: arXiv
  // 2408.00118, section 2; sinks: arXiv 2508.10925, section 2.2.
  virtual void forward(const AttentionShape& shape, std::span<const AttentionUnit> units,
                       const AttentionOperands& operands) = 0;

  // The same function for units of few rows: the bits of a row depend on its query, on the keys
  // and values it sees and on their indexes alone, not on what else is computed. The keys are
  // shared out over the threads, so one row with many keys uses all of them.
  virtual void forward_exact(const AttentionShape& shape, std::span<const AttentionUnit> units,
                             const AttentionOperands& operands) = 0;

  // Gradients of forward() for units of f32 rows, given those of o; `operands` as forward() left
  // them. Rows first_row ... of k and v belong to one tile of one unit.
  //   p_ij = exp(s_ij - log_sum_exp_i),  ds_ij = p_ij (do_i . v_j - do_i . o_i + dl_i)
  //   (dl the gradient of log_sum_exp; with a cap ds_ij is multiplied by 1 - (s_ij / soft_cap)^2)
  //   dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i,  dv_j = sum_i p_ij do_i
  //   da = sum_i exp(a - log_sum_exp_i) (dl_i - do_i . o_i)
  virtual void backward(const AttentionShape& shape, std::span<const AttentionUnit> units,
                        const AttentionOperands& operands, const AttentionGradients& gradients) = 0;

  // out_i = sum_a p_ia value_ia, p_i the softmax over: the score of q_i and k_j (as in forward())
  // with value v_j for each of `fixed` keys, and log_sum_exp_i with value o_i for each part. So it
  // is attention to the union of what the parts attended to, and the fixed keys.
  virtual void merge(const AttentionMerge& arguments, const Matrix& out) = 0;

  // The gradients of merge() from out's. gradients.parts: for each part, [rows, heads value_dim] of
  // its o and [rows, heads] of its log_sum_exp.
  virtual void merge_backward(const AttentionMerge& arguments, const ConstMatrix& out,
                              const AttentionMergeGradients& gradients) = 0;

  // blocks[i].to = the statistic of the block's rows of `type`, `stride` numbers apart.
  virtual void summarise(std::span<const KeyBlock> blocks, BlockStatistic statistic,
                         int64_t columns, DType type, int64_t stride) = 0;

  // Chooses blocks for each row of the units and each list: out [rows, choice.lists, choice.top] as
  // KeyLists has it. The keys of a unit are the entries, which shape.key_dim and kv_heads are of
  // (values are not read), `visible` the entries that a row sees. own_block [rows]: of the row
  // itself; later ones are never chosen. Of equal scores the first block wins. What a row chooses
  // depends on its query and the entries it sees alone.
  virtual void choose_blocks(const AttentionShape& shape, const BlockChoice& choice,
                             std::span<const AttentionUnit> units, const ConstMatrix& q,
                             const int32_t* own_block, int32_t* out) = 0;

  // Adds to weights[j] what the unit's rows, one after another, give to each of its keys,
  //   sum over heads of exp(s_ij - log_sum_exp_i),
  // with the scores s_ij as in forward(): the share of the key in their softmax. q and log_sum_exp
  // have the unit's rows, from first_row on. weights: kAttentionTile numbers for each of
  // unit.tiles, in memory of the host. The bits depend on the rows and the keys alone.
  virtual void weigh_keys(const AttentionShape& shape, const AttentionUnit& unit,
                          const ConstMatrix& q, const ConstMatrix& log_sum_exp, float* weights) = 0;

  // Chooses keys for each row of the units: the `top` with the largest scores of the indexer among
  // those that the row sees, all if they are not more. The keys of a unit are the indexer's. out
  // [rows, top], as KeyLists has lists of blocks of one key. Of equal scores the first key wins.
  // What a row chooses depends on its queries, its weights and the keys it sees alone.
  virtual void choose_keys(const IndexerOperands& indexer, std::span<const AttentionUnit> units,
                           int64_t top, int32_t* out) = 0;

  virtual void indexer_loss(const IndexerLoss& arguments) = 0;

  // Writes `rows` rows of `columns` numbers, rounded to `type` (f32, bf16 or f16: to the nearest,
  // ties to even, beyond the range of f16 its largest number; q8_0, q4_0: as above), `stride`
  // numbers apart.
  virtual void store_rows(const ConstMatrix& from, int64_t rows, int64_t columns, DType type,
                          std::byte* to, int64_t stride) = 0;

  // The opposite: writes the numbers that such rows stand for, exactly; `stride` is of `from`.
  virtual void load_rows(const std::byte* from, int64_t rows, int64_t columns, DType type,
                         int64_t stride, const Matrix& to) = 0;
};

std::unique_ptr<AttentionKernels> make_cpu_attention_kernels();

}  // namespace pronghorn
