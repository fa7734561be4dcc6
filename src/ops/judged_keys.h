// Caches that drop the rows that queries look at least (SnapKV, arXiv 2404.14469; H2O, 2306.14048):
// when they do, and what it takes. Everything goes by the numbers of rows alone, so that it does
// not matter how a sequence is cut.
#pragma once

#include <vector>

#include "ops/attention.h"
#include "tensor/batch.h"

namespace pronghorn {

// The segments of a batch as they are run one after another: all in the first round, those whose
// journal at `slot` weighs its rows up to where it does so next, and further parts of these in
// further rounds. Throws Error for rows there that are no chain of tokens, each after the other.
std::vector<std::vector<Segment>> judged_rounds(const CheckedBatch& batch, JournalSlot slot);

// Weighs the rows of a journal and drops some, if the next row is the first after an interval.
void judge_keys(Journal& journal, const AttentionOptions& options);

// Keeps those queries of a round, whose keys have been appended, that weigh rows at its end. q and
// log_sum_exp as in attention().
void keep_queries(const CheckedBatch& batch, const std::vector<Segment>& round, const Tensor& q,
                  const Tensor& log_sum_exp, JournalSlot slot);

}  // namespace pronghorn
