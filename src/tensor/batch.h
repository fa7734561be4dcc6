// Batch: the rows of one forward and the sequences they belong to.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/sequence_state.h"

namespace pronghorn {

enum class Mask : uint8_t {
  causal,  // a row sees itself and earlier rows of its sequence
  full     // a row sees every row of its segment (and all of the sequence before it)
};

// Rows first_row ... first_row + length - 1 continue one sequence.
struct Segment {
  SequenceState* state = nullptr;  // null: a fresh sequence whose state is not kept (training)
  int64_t first_row = 0;
  int64_t length = 0;
  Mask mask = Mask::causal;
  // A token tree instead of a chain: parents[i] < i is the parent of row i within the segment, or
  // -1 if its parent is the last token of `state`. Empty: a chain.
  std::vector<int32_t> parents;
};

// One call of Model::forward. Segments cover the rows in order, without gaps. A sequence may have
// at most one segment.
struct Batch {
  std::vector<int32_t> tokens;     // a row each
  std::vector<int32_t> positions;  // of each row in its sequence: data, not its index (subsampling,
                                   // trees)
  std::vector<Segment> segments;

  int64_t rows() const { return static_cast<int64_t>(positions.size()); }
};

// Which journal of which layer an operator keeps its state in.
struct JournalSlot {
  int64_t layer = 0;
  int64_t index = 0;
};

}  // namespace pronghorn
