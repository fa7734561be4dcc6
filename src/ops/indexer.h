// The indexer of DeepSeek sparse attention (arXiv 2512.02556, section 2.1): a few narrow heads
// score all earlier tokens, and attention looks at those with the largest scores. It learns from
// what attention looks at, not from the model's loss.
#pragma once

#include <cstdint>

#include "ops/attention.h"
#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

struct IndexerOptions {
  int64_t heads = 1, head_dim = 64;
  int64_t top = 2048;  // keys of a row, the row's own among those that compete
};

// q [rows, heads head_dim], k [rows, head_dim] with their rotary positions; weights [rows, heads].
// The score of row s for row t is I_ts = sum_h weights_th max(0, q_th . k_s).
struct IndexerInputs {
  Tensor q, k, weights;
};

// A row is a token's k; it may be held as keys and values of attention are.
JournalShape indexer_journal(const IndexerOptions& options);

// The `top` keys with the largest scores among a row and those before it, the earlier first among
// equal ones; all if they are not more. In a tree the rows before a node are its ancestors and the
// sequence. Appends k to the journals at `slot`. What a row chooses depends on its inputs and on
// the keys alone, bit-identical however a sequence was cut. No gradient. Throws Error on widths
// that do not fit the options and on segments that are not causal.
BlockLists choose_keys(const IndexerInputs& inputs, const IndexerOptions& options,
                       const CheckedBatch& batch, JournalSlot slot);

// What the indexer imitates: attention (partial_attention()) with its inputs and log-sum-exp, over
// the keys of `lists`, or all earlier ones without lists. v is not looked at.
struct IndexerTeacher {
  Tensor q, k, log_sum_exp;
  AttentionOptions options;
  BlockLists lists;
};

// The mean over the rows of KL(p_t || softmax of I_t over the same keys), [1], where p_t is the
// mean of the attention heads' probabilities (equation 3 over all keys, equation 4 over those
// chosen). All segments are fresh. The gradient goes to `inputs` alone.
Tensor indexer_loss(const Context& context, const IndexerInputs& inputs,
                    const IndexerOptions& options, const IndexerTeacher& teacher,
                    const CheckedBatch& batch);

}  // namespace pronghorn
