// Recurrences over sequences that lie on several ranks.
//
// ulysses: inputs go to the ranks that have their heads or channels, which run whole sequences; the
// results come back (DeepSpeed-Ulysses, arXiv 2309.14509). Without a tape the bits are those of one
// rank.
//
// ring: a rank runs its pieces by itself. What a piece leaves is linear in the state S that it
// begins with, S' = P S + L: L and P are found for all pieces at once, the states then go from
// piece to piece, and the pieces are run with theirs.
//
// Where states are kept (SequenceShards::keeps) the first rank's journals at `slot` get the states
// after the last rows.
#pragma once

#include "ops/outer_product_state.h"
#include "ops/selective_scan.h"
#include "tensor/sequence_shards.h"

namespace pronghorn {

// outer_product_state() of this rank's rows.
Tensor sharded_outer_product_state(const Context& context, const OuterProductStateInputs& inputs,
                                   const OuterProductStateOptions& options,
                                   const SequenceShards& shards, JournalSlot slot);

// selective_scan() of this rank's rows.
Tensor sharded_selective_scan(const Context& context, const SelectiveScanInputs& inputs,
                              const SequenceShards& shards, JournalSlot slot);

// diagonal_scan() of this rank's rows. Throws Error for ring.
Tensor sharded_diagonal_scan(const Context& context, const Tensor& log_a, const Tensor& x,
                             const SequenceShards& shards, JournalSlot slot);

// running_sum() of this rank's rows. Throws Error for ring.
Tensor sharded_running_sum(const Context& context, const Tensor& x, float period,
                           const SequenceShards& shards, JournalSlot slot);

}  // namespace pronghorn
