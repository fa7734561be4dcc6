// What is left of sequences that lie on several ranks, for who goes on with them alone: operators
// fill the journals of the first rank as whole sequences would. All ranks call these functions;
// where no states are kept (SequenceShards::keeps) they do nothing.
#pragma once

#include <span>
#include <vector>

#include "ops/exchange.h"
#include "tensor/batch.h"
#include "tensor/sequence_shards.h"
#include "tensor/tensor.h"

namespace pronghorn {

// Of operators whose journals are rows (attention, convolutions): the rows of `parts` side by side,
// undefined ones omitted, which are those of this rank. Rows that a journal would have dropped are
// not sent. Throws Error if they are not as wide as the journal's.
void keep_rows(const SequenceShards& shards, JournalSlot slot, std::span<const Tensor> parts);

// Of recurrences: `states`, the states after the last rows, become the anchors. [sequences, anchor
// size] on the first rank; others may give undefined ones.
void keep_states(const SequenceShards& shards, JournalSlot slot, const Tensor& states);

// The columns of all ranks side by side, on the first one; undefined elsewhere. x: [rows,
// of_rank[own rank].count], as many rows on all ranks.
Tensor columns_at_root(const SequenceShards& shards, const Tensor& x,
                       std::span<const Columns> of_rank);

// Whole sequences with fresh states that have a journal of one operator alone.
class OwnStates {
 public:
  OwnStates(const CheckedBatch& whole, const JournalShape& shape);
  OwnStates(const OwnStates&) = delete;
  OwnStates& operator=(const OwnStates&) = delete;

  const CheckedBatch& batch() const { return batch_; }
  static constexpr JournalSlot kSlot = {};
  // After the operator has run: the states after the last rows, [sequences, anchor size].
  Tensor after();

 private:
  std::vector<SequenceState> states_;
  CheckedBatch batch_;
};

}  // namespace pronghorn
