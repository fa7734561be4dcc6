// Softmax attention: multi-head, grouped-query and multi-query; causal, sliding-window, both ways
// or in blocks; chains and token trees.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "ops/rope.h"
#include "tensor/batch.h"
#include "tensor/storage.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// Whose keys and values an attention reads: its own; its own, which later layers of the same
// forward read as well; those of such an earlier layer.
enum class KeyOwner : uint8_t { own, lent, borrowed };

struct AttentionOptions {
  int64_t heads = 1;
  // Divides heads; query head h reads key and value head h / (heads / kv_heads).
  int64_t kv_heads = 1;
  int64_t head_dim = 64;  // width of a head's query and key
  int64_t value_dim = 0;  // width of a head's value and output; 0: head_dim
  // A head's value is the first value_dim numbers of its key, so there is no v (the absorbed form
  // of multi-head latent attention, arXiv 2405.04434, section 2.1).
  bool value_in_key = false;
  float scale = 0;     // of the scores; 0: 1 / sqrt(head_dim)
  float soft_cap = 0;  // scores become soft_cap tanh(s / soft_cap); 0: they stay
  int64_t window = 0;  // a row sees keys whose position is > its own - window; 0: all
  // a row sees no keys of segments before its own (position / segment, rounded down); 0: all
  int64_t segment = 0;
  // with segments, in sequences without a state: a row sees the keys of segments before its own
  // instead, as far as the window goes; with it nothing counts as prefix
  bool earlier = false;
  // with a window or segments: the first rows of a sequence, which all that follow see as well
  int64_t prefix = 0;
  KeyOwner keys = KeyOwner::own;
  // Mixture of block attention (MoBA, arXiv 2502.13189, section 2.2): of the blocks of `block` rows
  // each query head sees its row's own and the top_blocks - 1 earlier ones with the largest
  // q . mean of their keys, the earlier block first among equal ones. A multiple of kAttentionTile;
  // 0: all rows.
  int64_t block = 0, top_blocks = 0;
  // The rotary angles that q and k carry, in each head from channel rope_begin on, for caches that
  // roll (CacheOptions::window); null: none.
  SharedAngles angles = nullptr;
  int64_t rope_begin = 0;
};

// Which blocks of a sequence's rows each row of a batch sees, besides what the options say: the
// rows of a state, and of a segment, counted from 0 on. As KeyLists (backend/attention.h) has them.
struct BlockLists {
  PooledVector<int32_t> blocks;  // [rows, lists, width]
  int64_t lists = 0, width = 0, block = 0;
};

// How many keys a row sees, of `context` that are its own or earlier; segments do not count here.
double rows_seen(const AttentionOptions& options, double context);

// The journal an attention layer keeps: a row is [key | value] of all key-value heads, or only the
// key with value_in_key; no anchor. With a window or segments, rows that are out of reach are
// dropped, but for the prefix; lent ones when the forward has ended. There is none for borrowed
// keys. Its rows may be held in another type (with_cache): they are rounded when they are
// appended, and a row of a segment with a state attends to the rounded rows only, those of its own
// segment included. With blocks, it keeps the means of their keys.
JournalShape attention_journal(const AttentionOptions& options);

// For each row i and query head, over the keys j that row i sees,
//   o_i = sum_j p_ij v_j,  p_ij = exp(s_ij) / (exp(a) + sum_j exp(s_ij)),  s_ij = scale q_i . k_j
// q [rows, heads head_dim], k [rows, kv_heads head_dim], v [rows, kv_heads value_dim] (undefined
// with value_in_key); returns [rows, heads value_dim]. sinks [heads]: a for each head, learned
// (arXiv 2508.10925, section 2.2); undefined: the denominator has no exp(a). With soft_cap, s_ij is
// capped (arXiv 2408.00118, section 2). A row that sees nothing gets 0. q and k already carry their
// rotary positions.
//
// A segment with a state first appends its k and v to the journal at `slot`, then attends to the
// whole journal; one without attends to itself. With borrowed keys, k, v and slot are those of the
// attention that lent them, with the same widths, window and segments: the lender has appended
// them, and the gradients of both add up. In a token tree a row sees the journal before the tree,
// its ancestors and itself, and the tree then waits for commit_path(). What the rows of a chain see
// of one another is said by Segment::mask; under Mask::replace they take places in the journal, and
// see all of it. Without a tape, steps of up
// to kExactStep tokens and trees are bit-identical however a sequence was cut, whatever else is in
// the batch; a longer segment depends on where it was cut itself, within rounding, unless it is
// given lists of single keys.
//
// Tiled with online softmax (arXiv 2205.14135, 2307.08691): no T x T matrix, forward or backward;
// the backward pass recomputes p from the saved log-sum-exp, as in backend/attention.h. Which
// blocks a row sees is a constant of the gradient. lists: in place of those that the options would
// choose. With a tape, segments must have no state and q must not be the tensor that k or v is.
// Under a window, positions must not decrease along a sequence. Throws Error on these, and on
// widths that do not fit the options.
Tensor attention(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                 const AttentionOptions& options, const CheckedBatch& batch, JournalSlot slot,
                 const Tensor& sinks = {}, const BlockLists& lists = {});

// What attention to some keys gives, and what it takes to merge it with attention to others.
struct AttentionResult {
  Tensor output;       // [rows, heads value_dim]
  Tensor log_sum_exp;  // [rows, heads]
};

// attention() with its log-sum-exp, which has a gradient too.
AttentionResult partial_attention(const Context& context, const Tensor& q, const Tensor& k,
                                  const Tensor& v, const AttentionOptions& options,
                                  const CheckedBatch& batch, JournalSlot slot,
                                  const Tensor& sinks = {}, const BlockLists& lists = {});

// Keys and values that are made of what a journal holds (the expanded form of latent attention).
//
// The rows that the journal at `slot` holds before a segment, where all rows of the segment see all
// of them, and may depend on the cut: nothing unless it is a causal chain of more than kExactStep
// tokens with a state, and its cache neither drops rows nor chooses among them.
std::optional<int64_t> rows_before(const Segment& segment, JournalSlot slot);

// Appends the rows of such a segment to the journal, rounded, as attention() does; k is [rows of
// the batch, row width]. Returns what all rows that the journal then holds stand for, [count, row
// width].
Tensor append_and_read(const CheckedBatch& batch, const Segment& segment, const Tensor& k,
                       JournalSlot slot);

// attention() of such a segment to keys and values in the place of those rows: q [length, heads
// head_dim], k [count, kv_heads head_dim], v [count, kv_heads value_dim]; row i sees the first
// count - length + i + 1. Returns [length, heads value_dim]. Has no gradient. Throws Error on a
// window, segments, chosen blocks, values in keys, and widths that do not fit the options.
Tensor attention_to_rows(const Tensor& q, const Tensor& k, const Tensor& v,
                         const AttentionOptions& options);

// Attention of q to everything that `parts` attended to and to `count` fixed keys that every row
// sees (persistent memory, arXiv 2501.00663 section 3.3): keys [count, heads head_dim] and values
// [count, heads value_dim], both or neither undefined. kv_heads must be heads, and values are not
// in keys. A row is computed from that row alone.
Tensor merge_attention(const Context& context, const Tensor& q,
                       std::span<const AttentionResult> parts, const Tensor& keys,
                       const Tensor& values, const AttentionOptions& options);

}  // namespace pronghorn
