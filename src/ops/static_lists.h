// Which earlier keys rows look at by where they are alone: windows with gaps, the first tokens, and
// blocks drawn at random (Longformer, arXiv 2004.05150, section 3; BigBird, arXiv 2007.14062,
// section 2), in causal form.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/attention.h"
#include "tensor/batch.h"

namespace pronghorn {

// In blocks of `block` rows, b the block of a row. It sees, for list l, as far as they are there:
//   blocks b - t dilations[l] for t < window; blocks 0 ... first - 1; and `random` of those
//   between, which depend on seed, l and b alone.
// All of it is about rows before a row and itself: what later rows a block has is not seen.
struct StaticPattern {
  int64_t block = 1;                     // a divisor or multiple of kAttentionTile
  std::vector<int64_t> dilations = {1};  // of each list; all 1 where blocks are drawn
  int64_t window = 1, first = 0, random = 0;
  uint64_t seed = 0;

  int64_t lists() const { return static_cast<int64_t>(dilations.size()); }
  int64_t width() const { return window + first + random; }
};

// The blocks of one list of a row in block `own`, ascending.
std::vector<int32_t> static_list(const StaticPattern& pattern, int64_t list, int64_t own);

// The lists of all rows of a batch whose keys will be appended to the journals at `slot`. Throws
// Error for segments that are not causal.
BlockLists static_lists(const StaticPattern& pattern, const CheckedBatch& batch, JournalSlot slot);

// The same both ways, for single keys without anything drawn: row i of a segment sees rows i + t
// dilations[l] for -window < t < window and the first ones. The first rows themselves see nothing
// here but all in global_lists(), where the others see nothing. Throws Error unless segments are of
// Mask::full and have no state.
BlockLists both_ways_lists(const StaticPattern& pattern, const CheckedBatch& batch);
BlockLists global_lists(int64_t first, const CheckedBatch& batch);

}  // namespace pronghorn
