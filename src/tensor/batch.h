// Batch: the rows of one forward and the sequences they belong to.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "tensor/sequence_state.h"
#include "tensor/tensor.h"

namespace pronghorn {

enum class Mask : uint8_t {
  causal,  // a row sees itself and earlier rows of its sequence
  full,    // a row sees every row of its segment (and all of the sequence before it)
  // As full, but a row sees no later blocks: positions p of one p / Segment::block are a block.
  blocks,
  // The segment is a fresh sequence twice, one half after the other, with the same positions: as it
  // is, under `blocks`, and with noise. A row with noise sees the rows of its block with noise, and
  // earlier blocks as they are (arXiv 2503.09573, section 3.2).
  two_copies,
  // As full, but the rows take the places of those that the state has at their positions.
  replace
};

class SequenceShards;

// Rows first_row ... first_row + length - 1 continue one sequence.
struct Segment {
  SequenceState* state = nullptr;  // null: a fresh sequence whose state is not kept (training)
  int64_t first_row = 0;
  int64_t length = 0;
  Mask mask = Mask::causal;
  // A token tree instead of a chain: parents[i] < i is the parent of row i within the segment, or
  // -1 if its parent is the last token of `state`. Empty: a chain.
  std::vector<int32_t> parents = {};
  int64_t block = 0;  // of the masks that have blocks
  // Of fresh segments: the one of the batch, before this one, whose rows come before this one's, as
  // if it went on from there; -1: none does. Several may go on from one, each in its own way, so
  // that together they are a tree (ops/forks.h).
  int64_t after = -1;
};

// In place of a token: the row is a patch of an image.
constexpr int32_t kPatch = -1;

// One call of Model::forward. Segments cover the rows in order, without gaps. A sequence may have
// at most one segment.
struct Batch {
  std::vector<int32_t> tokens = {};  // one per row; or
  Tensor embeddings = {};            // [rows, hidden_size] in place of tokens
  // Each row's place in its sequence: data, not its index (subsampling, trees). Journals use them.
  std::vector<int32_t> positions = {};
  // Places of another kind than the order of the sequence, [rows, k] with any k, for operators that
  // take them (time, height and width of an image's patches); empty: there are none.
  std::vector<int32_t> coordinates = {};
  std::vector<Segment> segments = {};
  // Of a model of texts that sees images (ModelConfig::vision): the pixels of the rows whose token
  // is kPatch, in their order, [such rows, pixels of a patch]; undefined: there are none.
  Tensor patches = {};
  // Not null: the segments are pieces of sequences that lie on several ranks
  // (tensor/sequence_shards.h). It outlives the forward and its backward pass.
  const SequenceShards* shards = nullptr;

  int64_t rows() const { return static_cast<int64_t>(positions.size()); }
};

// A batch whose promises have been checked, once, for all operators of a forward:
// - segments follow one another, have no negative length and cover the rows;
// - a sequence is in at most one segment;
// - a tree is causal, continues a state and has one parent per row, which comes before the row;
// - blocks have a size, two copies no state and the same positions, and rows are replaced at
//   positions that follow one another in a state that has them;
// - what goes on from a segment, and that segment, which has rows, are fresh chains and causal;
// - positions are not negative, and those of a segment with a state grow along each path;
// - there are tokens for all rows, embeddings for all rows, or neither; patches for the tokens that
//   stand for them; coordinates divide evenly;
// - pieces of sequences have no state and are causal.
// It refers to the batch, which must outlive it and stay as it is. A copy, as in a closure that
// runs later, and one made from a temporary own their batch.
class CheckedBatch {
 public:
  // Implicit, so that operators and models take a Batch. Throws Error on a broken promise.
  CheckedBatch(const Batch& batch);  // NOLINT(google-explicit-constructor)
  CheckedBatch(Batch&& batch);       // NOLINT(google-explicit-constructor)

  CheckedBatch(const CheckedBatch& other);
  CheckedBatch(CheckedBatch&& other) = default;
  CheckedBatch& operator=(const CheckedBatch&) = delete;
  CheckedBatch& operator=(CheckedBatch&&) = default;

  int64_t rows() const { return batch_->rows(); }
  std::span<const Segment> segments() const { return batch_->segments; }
  std::span<const int32_t> tokens() const { return batch_->tokens; }
  const Tensor& embeddings() const { return batch_->embeddings; }
  const Tensor& patches() const { return batch_->patches; }
  std::span<const int32_t> positions() const { return batch_->positions; }
  std::span<const int32_t> positions(const Segment& segment) const {
    return positions().subspan(static_cast<size_t>(segment.first_row),
                               static_cast<size_t>(segment.length));
  }
  // [rows, coordinate_count()]
  std::span<const int32_t> coordinates() const { return batch_->coordinates; }
  int64_t coordinate_count() const {
    return rows() == 0 ? 0 : static_cast<int64_t>(coordinates().size()) / rows();
  }
  const SequenceShards* shards() const { return batch_->shards; }
  // Whether rows must be the same bits whatever the other rows are: not if all of them are of
  // chains longer than kExactStep, which keep to the split and batch laws within rounding.
  bool needs_exact_rows() const;

 private:
  explicit CheckedBatch(std::shared_ptr<const Batch> batch)
      : owned_(std::move(batch)), batch_(owned_.get()) {}

  std::shared_ptr<const Batch> owned_;  // null: somebody else's
  const Batch* batch_;
};

// Which journal of which layer an operator keeps its state in.
struct JournalSlot {
  int64_t layer = 0;
  int64_t index = 0;
};

// Adds rows that continue `state` by `tokens`, at the positions that follow; parents as in Segment.
void add_segment(Batch& batch, SequenceState& state, std::span<const int32_t> tokens,
                 std::vector<int32_t> parents = {});

// Adds a fresh sequence whose state is not kept.
void add_fresh_segment(Batch& batch, std::span<const int32_t> tokens);

// A batch that continues one sequence with `tokens`, at the positions that follow.
Batch continue_sequence(SequenceState& state, std::span<const int32_t> tokens);

// A training batch: `tokens` holds segments of `length` tokens one after another, all fresh. Throws
// Error unless they are whole.
Batch fresh_segments(std::span<const int32_t> tokens, int64_t length);

// Most tokens of a prompt that are read in one forward: bounds the memory of activations.
constexpr int64_t kPromptPiece = 2048;

// Calls read(done, count) for the pieces of `total` tokens, `piece` each and a rest, in order.
template <typename Read>
void read_in_pieces(int64_t total, Read&& read, int64_t piece = kPromptPiece) {
  for (int64_t done = 0; done < total; done += piece) read(done, std::min(piece, total - done));
}

}  // namespace pronghorn
