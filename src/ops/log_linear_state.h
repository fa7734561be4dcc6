// Log-linear attention (Guo et al., arXiv 2506.04761): in place of one state that holds all tokens,
// one for each bucket of a Fenwick tree, whose sizes double with their age, read with weights of
// its own for each token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/outer_product_state.h"

namespace pronghorn {

struct LogLinearOptions {
  OuterProductStateOptions state;  // without channel_decay
  // Number of levels, at least 2. Level 0 holds the tokens of the bucket that is being filled,
  // level l < levels - 1 up to bucket 2^(l-1) tokens before those, the last one everything older:
  // contexts of up to bucket 2^(levels-1) tokens have the paper's tree.
  int64_t levels = 2;
  int64_t bucket = 1;  // tokens of the smallest buckets, of which level 0 is one; 1: the paper's
};

// What it keeps: a journal of outer_product_state_journal() for each level.
std::vector<JournalShape> log_linear_state_journals(const LogLinearOptions& options);

// o_t = sum over levels l of weights_t,l S_t,l^T (query_scale q_t) + skip v_t, where the states of
// all levels together are that of outer_product_state(): every token is written into level 0, every
// level decays (and erases), and buckets that are full are added up into the next level, as a
// binary counter carries (section 3.2, equations 9 to 12). weights [rows, levels value_heads],
// level by level. With equal weights it is outer_product_state() times these. Which bucket a token
// is in follows from how many rows its sequence has before it. Returns o [rows, value_heads
// value_dim].
//
// Each level runs the one operator for such states under a gate of its own: what is in level l is
// what was written in the first half of a block of bucket 2^l tokens, read in the second half, and
// forgotten at the end; the last level is a state of all tokens less the other levels. So the laws,
// gradients and journals are those of that operator, and cost and state `levels` times its.
// Throws Error as that does; inputs.log_decay must be there, a row for each token.
Tensor log_linear_state(const Context& context, const OuterProductStateInputs& inputs,
                        const Tensor& weights, const LogLinearOptions& options,
                        const CheckedBatch& batch, std::span<const JournalSlot> slots);

}  // namespace pronghorn
