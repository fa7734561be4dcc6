// Collectives on tensors, with gradients: rows and columns that go from rank to rank. All ranks
// call the same ones in the same order, in the forward and therefore in the backward pass.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "tensor/sequence_shards.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// As Ranks::bytes_sent_as() knows them.
constexpr const char* kSentHeads = "heads";    // to_heads() and to_rows()
constexpr const char* kSentKeys = "keys";      // of ring attention
constexpr const char* kSentStates = "states";  // states_before()
constexpr const char* kSentRows = "rows";      // PrecededRows
constexpr const char* kSentKept = "kept";      // keep_rows() and keep_states()

// Rows and columns of an input of one rank that are added to an output of another, or of the same.
struct Transfer {
  int64_t from = 0, to = 0;  // ranks
  size_t tensor = 0;         // which input, and which output
  SharedRows from_rows, to_rows;
  int64_t from_column = 0, to_column = 0, columns = 0;
};

// The outputs, zeros but for what the transfers add to them, in their order. `transfers`: those
// that this rank takes part in, in an order that all ranks have. An input from which this rank
// sends nothing may be undefined; an output of no rows is. With a tape, outputs require a
// gradient, whatever the inputs do: other ranks' inputs may.
std::vector<Tensor> exchange(const Context& context, Ranks& ranks, const char* collective,
                             std::span<const Tensor> inputs, std::span<const Shape> outputs,
                             std::vector<Transfer> transfers);

struct Columns {
  int64_t begin = 0, count = 0;
};

// A tensor of this rank's rows, and which of its columns each rank is to have.
struct SharedColumns {
  Tensor tensor;  // may be undefined
  std::vector<Columns> of_rank;
};

// All rows of the whole batch, with this rank's columns, in one exchange. Undefined tensors stay
// so.
std::vector<Tensor> to_heads(const Context& context, const SequenceShards& shards,
                             std::span<const SharedColumns> parts);

// The reverse: x [rows of the whole batch, own columns]; returns this rank's rows with the columns
// of all ranks, of_rank[r] being where those of rank r belong.
Tensor to_rows(const Context& context, const SequenceShards& shards, const Tensor& x,
               std::span<const Columns> of_rank);

// Columns that are dealt out evenly, rank after rank. where: for messages. Throws Error if there
// are fewer than ranks.
std::vector<Columns> even_columns(const SequenceShards& shards, int64_t columns, const char* where);
// All columns to each rank.
std::vector<Columns> all_columns(const SequenceShards& shards, int64_t width);

// Heads that are dealt out over ranks, and heads that groups of them share (grouped-query
// attention, B and C of Mamba-2): each rank has those that its heads need.
class HeadShares {
 public:
  // where: for messages. Throws Error unless ranks have as many heads each, and of whole groups or
  // of one group.
  HeadShares(const SequenceShards& shards, int64_t heads, int64_t shared_heads, const char* where);

  int64_t heads() const { return heads_; }          // of this rank
  int64_t shared_heads() const { return shared_; }  // that these need
  // Columns of each rank, where a head has `width`.
  std::vector<Columns> of_heads(int64_t width) const;
  std::vector<Columns> of_shared(int64_t width) const;
  // Of this rank, in a vector with `width` numbers for each head; undefined if it is.
  Tensor own(const Tensor& x, int64_t width = 1) const;

 private:
  int64_t ranks_, rank_, heads_, group_, shared_ = 1;
};

// The rows of this rank's pieces, each piece after the rows of its sequence before it, which other
// ranks have: for operators that look back by a few rows.
class PrecededRows {
 public:
  // x: the rows of this rank. count: rows before each piece, fewer where the sequence has fewer.
  PrecededRows(const Context& context, const SequenceShards& shards, const Tensor& x,
               int64_t count);

  const CheckedBatch& batch() const { return batch_; }
  const Tensor& rows() const { return rows_; }
  // Of a tensor with the rows of batch(): those of this rank's pieces.
  Tensor own(const Context& context, const Tensor& y) const;

 private:
  struct Place {
    int64_t first_row, before, length;
  };

  std::vector<Place> places_;
  CheckedBatch batch_;
  Tensor rows_;
};

// A recurrence over pieces. What a piece leaves is linear in the state that it begins with:
// advance(transition, before) + left, `left` being what it leaves of zeros. Both [height, ...] for
// each of this rank's pieces, one below the other. Returns [height, columns of left] for each: the
// state that it begins with, zeros for the first of a sequence. Each piece's state goes to the rank
// that has the next.
using AdvanceState = std::function<Tensor(const Tensor& transition, const Tensor& before)>;
Tensor states_before(const Context& context, const SequenceShards& shards, const Tensor& left,
                     const Tensor& transitions, int64_t height, const AdvanceState& advance);

// concatenate_rows(), without a copy of one part.
Tensor stacked(const Context& context, std::span<const Tensor> parts);

}  // namespace pronghorn
