// Blocks of rows of a sequence that stand for themselves by one vector each, and the choice of
// blocks by these vectors: MoBA's means, Quest's bounds, NSA's compressed keys.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/attention.h"
#include "ops/attention.h"
#include "ops/attention_units.h"
#include "tensor/batch.h"

namespace pronghorn {

// The index of row `row` of a segment among the rows of its sequence, which `before` rows precede:
// in a tree that which it would have in a chain of its ancestors.
int64_t index_in_sequence(const Segment& segment, int64_t row, int64_t before);

// The indexes, in its segment, of the nodes from the root of a tree to `node`.
std::vector<int64_t> path_to_node(const Segment& segment, int64_t node);

// Blocks up to the last of any row: no list is longer. own: the block of each row.
int64_t most_blocks(std::span<const int32_t> own);

// How blocks are chosen by their keys.
struct KeyBlockRule {
  int64_t block = 0;  // rows
  BlockStatistic statistic = BlockStatistic::mean;
  BlockChoice choice;
};

// MoBA's, as options.block and .top_blocks have it.
KeyBlockRule moba_rule(const AttentionOptions& options);
// Quest's, as a cache has it (CacheOptions::quest_pages).
KeyBlockRule quest_rule(const AttentionOptions& options, const JournalShape& shape);

// Gives the journal of these keys the vectors of blocks of committed rows that are complete.
void complete_key_blocks(Journal& journal, const AttentionOptions& options,
                         const KeyBlockRule& rule);

// The choice of the rows of `segments`, which are some of the batch's; other rows are left out. The
// journals at `slot` have the segments' keys already and are given the vectors of blocks that are
// complete.
BlockLists choose_by_keys(const CheckedBatch& batch, std::span<const Segment* const> segments,
                          const Tensor& q, const Tensor& k, const AttentionOptions& options,
                          const KeyBlockRule& rule, JournalSlot slot);

}  // namespace pronghorn
