// What kernels of recurrences are told of tokens that continue a sequence: an anchor, which is the
// state after some multiple of the fold interval, and the journal rows since (tensor/journal.h).
// ops/replay.h plans them.
#pragma once

#include <cstdint>
#include <span>

namespace pronghorn {

// A state to make from another and the rows after it.
struct ReplayFold {
  const float* anchor = nullptr;  // null: a fresh sequence
  std::span<const float* const> rows;
  float* to = nullptr;
};

// A token computed from an anchor and its path.
struct ReplayToken {
  int64_t input_row = 0;               // of the batch
  int64_t depth = 0;                   // tokens of its path that are of this batch
  float* row = nullptr;                // its journal row, to be written
  std::span<const float* const> path;  // the rows since the anchor before it, oldest first
};

// Tokens that start from one anchor: fold.to, which is to be made first, or fold.anchor if fold.to
// is null.
struct ReplayStep {
  ReplayFold fold;
  std::span<const ReplayToken> tokens;

  const float* anchor() const { return fold.to != nullptr ? fold.to : fold.anchor; }
};

// The state after the first `tokens` tokens of a segment, to be written to `state`.
struct ReplaySnapshot {
  int64_t tokens = 0;
  float* state = nullptr;
};

}  // namespace pronghorn
