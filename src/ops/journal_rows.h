// Rows of a batch in the journals of its sequences.
#pragma once

#include <cstdint>
#include <span>

#include "tensor/batch.h"
#include "tensor/journal.h"
#include "tensor/tensor.h"

namespace pronghorn {

// The first of the journal's rows at these positions, which follow one another. Throws Error if
// they are not there.
int64_t find_rows(const Journal& journal, std::span<const int32_t> positions);

// Appends the rows of a segment, those of `parts` side by side (undefined ones are omitted), to its
// journal, or under Mask::replace puts them in the places of those at their positions, rounded as
// the journal holds them. A token tree then waits for commit_path(). Throws Error if there are no
// rows to be replaced.
void append_rows(const CheckedBatch& batch, const Segment& segment, std::span<const Tensor> parts,
                 Journal& journal);

// What all rows of a journal stand for, as it holds them: [length, row_width] of f32. Throws Error
// if it has dropped some.
Tensor read_rows(const Journal& journal);

}  // namespace pronghorn
