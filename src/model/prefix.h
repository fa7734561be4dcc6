// Rows that a model puts before every sequence: learned embeddings at the first positions (meta
// tokens, Hymba, arXiv 2411.13676, section 2.3). Who gives it tokens need not know of them.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/batch.h"
#include "tensor/tape.h"

namespace pronghorn {

// A batch as the blocks of such a model see it: positions count the prefix, and segments without a
// state begin with it.
struct PrefixedBatch {
  Batch batch;  // with embeddings
  // Of each row of the original batch its place in this one; empty: they are the same rows.
  std::vector<int32_t> rows;
};

// Whether some of its segments have still to be given the prefix: those without a state, and those
// whose sequence has not begun.
bool wants_prefix(const CheckedBatch& batch);

// length: rows of the prefix [length, width], which may be undefined if nothing wants it.
// embeddings [rows, width] of the batch's own rows. States have read the prefix. Throws Error for a
// batch with coordinates.
PrefixedBatch with_prefix(const Context& context, const CheckedBatch& batch, int64_t length,
                          const Tensor& prefix, const Tensor& embeddings);

// The batch by which a sequence reads the prefix.
Batch prefix_alone(SequenceState& state, const Tensor& prefix);

}  // namespace pronghorn
