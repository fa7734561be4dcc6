// Grids: rows of a segment by the places that their two coordinates name.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tensor/batch.h"

namespace pronghorn {

struct Grid {
  int64_t height = 0, width = 0;
  std::vector<int32_t> rows;  // of the batch, [height, width]

  // The row at a place; -1 outside of the grid.
  int32_t at(int64_t y, int64_t x) const {
    const bool inside = y >= 0 && y < height && x >= 0 && x < width;
    return inside ? rows[static_cast<size_t>(y * width + x)] : -1;
  }
};

// The grid that a segment's rows fill. Throws Error that begins with `where` unless they are all
// places of a grid, once each, and for a segment with a state.
Grid grid_of(const CheckedBatch& batch, const Segment& segment, std::string_view where);

}  // namespace pronghorn
