// Attention over sequences that lie on several ranks.
#pragma once

#include "ops/attention.h"
#include "tensor/sequence_shards.h"

namespace pronghorn {

struct AttentionInputs {
  const Tensor &q, &k, &v, &sinks;
};

// attention() or partial_attention() (`sums`) of this rank's rows to those of their sequences that
// come before, on whatever rank.
//
// ulysses: q, k and v go to the ranks that have their heads, which attend to whole sequences; the
// results come back (DeepSpeed-Ulysses, arXiv 2309.14509). Without a tape the bits are those of one
// rank.
//
// ring: keys and values go around the ranks; each merges what its queries read of a rank's keys by
// the log-sum-exp (arXiv 2310.01889). In the backward pass they go around again, with their
// gradients. Throws Error for blocks of keys that rows choose, and for lists.
//
// Where states are kept (SequenceShards::keeps) the first rank's journals at `slot` get the keys
// and values, but for borrowed ones and those of options.earlier.
AttentionResult sharded_attention(const Context& context, const AttentionInputs& in,
                                  const AttentionOptions& options, const SequenceShards& shards,
                                  JournalSlot slot, const BlockLists& lists, bool sums);

}  // namespace pronghorn
