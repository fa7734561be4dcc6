// Merging of neighbours in a grid: how the rows of one stage of a hierarchical model of images
// become those of the next, of half the height and half the width.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// Squares of 2 x 2 places, those at an odd edge with nothing beyond it.
struct MergedGrid {
  // A row for each square, in raster order, at half the coordinates; segments as they were, each
  // with fewer rows.
  Batch batch;
  // The rows of each square by their places in it, columns first: (0, 0), (1, 0), (0, 1), (1, 1),
  // row and column; -1: outside of the grid.
  std::array<std::vector<int32_t>, 4> corners;
};

// Throws Error unless the rows of each segment are all places of a grid, once each, and for
// segments with a state.
MergedGrid merged_grid(const CheckedBatch& batch);

// The rows of each square side by side, zeros for those outside: x [rows, columns] to [squares,
// 4 columns] (Swin Transformer, arXiv 2103.14030, section 3.1, which VMamba follows).
Tensor merge_patches(const Context& context, const Tensor& x, const MergedGrid& grid);

}  // namespace pronghorn
