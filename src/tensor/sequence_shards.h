// Sequences that lie on several ranks: which rows each has, and how their layers work together.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/ranks.h"
#include "tensor/batch.h"

namespace pronghorn {

// How operators along a sequence see rows of other ranks.
enum class SequenceParallel : uint8_t {
  none,     // each sequence is on one rank
  ulysses,  // each rank has some heads of all rows meanwhile (DeepSpeed-Ulysses, arXiv 2309.14509)
  // Keys and values go around (ring attention, arXiv 2310.01889), states go from piece to piece.
  ring
};

// "none", "ulysses" or "ring".
std::string_view name_of(SequenceParallel kind);
SequenceParallel sequence_parallel_named(std::string_view name);

// Ranks that read each sequence together.
struct SequenceSharing {
  Ranks* ranks = &one_rank();
  SequenceParallel kind = SequenceParallel::none;

  // Whether there are several.
  bool is_on() const { return kind != SequenceParallel::none && ranks->count() > 1; }
};

// Rows of a tensor, by their numbers.
using SharedRows = std::shared_ptr<const std::vector<int32_t>>;

// The rows of a batch over N ranks. Each sequence is cut into 2 N pieces that follow one another;
// rank r has pieces r and 2 N - 1 - r, so that causal attention is the same work for all (Llama 3,
// arXiv 2407.21783, section 3.3.2). On its rank a sequence's pieces lie one after the other, and
// the sequences in their order; a piece is a segment of its own.
class SequenceShards {
 public:
  // whole: of tokens or of positions alone, fresh causal segments of at least 2 N rows. ranks must
  // outlive this. Throws Error if a sequence is too short, or of another kind.
  //
  // states: on all ranks or on none, a fresh one of the model for each sequence. Those of the first
  // rank then become what a forward of the whole sequences would leave of them; the others' only
  // say what there is to keep. Of sequences whose length is a multiple of kExactStep and more than
  // that.
  SequenceShards(Ranks& ranks, SequenceParallel kind, const CheckedBatch& whole,
                 std::vector<SequenceState*> states = {});
  SequenceShards(const SequenceShards&) = delete;
  SequenceShards& operator=(const SequenceShards&) = delete;

  Ranks& ranks() const { return ranks_; }
  SequenceParallel kind() const { return kind_; }
  // Of all ranks.
  const CheckedBatch& whole() const { return whole_; }
  // The rows of this rank.
  const CheckedBatch& local() const { return local_; }

  struct Piece {
    int64_t sequence = 0;   // segment of the whole batch
    int64_t number = 0;     // in its sequence
    int64_t first_row = 0;  // of the whole batch
    int64_t length = 0;
    int64_t local_row = 0;  // its first row on its rank
  };
  int64_t sequences() const { return std::ssize(whole_.segments()); }
  // Of a sequence.
  int64_t piece_count() const { return 2 * ranks_.count(); }
  const Piece& piece(int64_t sequence, int64_t number) const {
    return pieces_[static_cast<size_t>(sequence * piece_count() + number)];
  }
  int64_t rank_of(int64_t number) const {
    return number < ranks_.count() ? number : piece_count() - 1 - number;
  }
  // Which of the two pieces of its rank it is.
  int64_t slot_of(int64_t number) const { return number < ranks_.count() ? 0 : 1; }
  // The other way round.
  int64_t number_of(int64_t rank, int64_t slot) const {
    return slot == 0 ? rank : piece_count() - 1 - rank;
  }

  // Rows of the whole batch that a rank has, in its order, and 0, 1, ... of as many.
  const SharedRows& rows(int64_t rank) const { return rows_[static_cast<size_t>(rank)]; }
  const SharedRows& own_rows(int64_t rank) const { return own_rows_[static_cast<size_t>(rank)]; }
  // How many rows of its sequence come before a row of this rank.
  int64_t place(int64_t local_row) const;

  // Whether states are kept, and this rank's of a sequence (ops/kept_states.h).
  bool keeps() const { return !states_.empty(); }
  SequenceState& state(int64_t sequence) const { return *states_[static_cast<size_t>(sequence)]; }
  // At the end of a forward: the first rank's states include their sequences from now on. Throws
  // Error if a layer has left no rows.
  void advance_states() const;

  // What this rank has of values of the rows of the whole batch.
  std::vector<int32_t> part_of(std::span<const int32_t> values) const;
  // The batch of this rank with other tokens in place of those of the whole batch.
  Batch local_batch(std::span<const int32_t> tokens) const;

 private:
  std::vector<Piece> cut() const;

  Ranks& ranks_;
  SequenceParallel kind_;
  CheckedBatch whole_;
  std::vector<Piece> pieces_;
  std::vector<SharedRows> rows_, own_rows_;
  std::vector<SequenceState*> states_;
  CheckedBatch local_;
};

// Throws Error if the rows are of sequences that lie on several ranks, for operators that need them
// whole. by_heads: `ulysses` gives them that.
void require_whole(const CheckedBatch& batch, std::string_view where, bool by_heads = false);

}  // namespace pronghorn
