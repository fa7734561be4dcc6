#include "ops/grid.h"

#include <algorithm>
#include <span>

#include "base/error.h"

namespace pronghorn {

Grid grid_of(const CheckedBatch& batch, const Segment& segment, std::string_view where) {
  require(segment.state == nullptr, where, "keeps no state of a sequence");
  require(batch.coordinate_count() == 2 || batch.rows() == 0, where,
          "rows have {} coordinates, not the 2 of a grid", batch.coordinate_count());
  const std::span<const int32_t> places = batch.coordinates().subspan(
      static_cast<size_t>(2 * segment.first_row), static_cast<size_t>(2 * segment.length));
  Grid grid;
  for (size_t i = 0; i < places.size(); i += 2) {
    const int64_t y = places[i], x = places[i + 1];
    require(y >= 0 && x >= 0, where, "a row at ({}, {}), outside of the grid", y, x);
    grid.height = std::max(grid.height, y + 1);
    grid.width = std::max(grid.width, x + 1);
  }
  // Sizes of 31 bits each: their product fits.
  require(grid.height * grid.width == segment.length, where,
          "{} rows do not fill a grid of {} by {}", segment.length, grid.height, grid.width);
  grid.rows.assign(static_cast<size_t>(segment.length), -1);
  for (size_t i = 0; i < places.size(); i += 2) {
    const int64_t y = places[i], x = places[i + 1];
    int32_t& row = grid.rows[static_cast<size_t>(y * grid.width + x)];
    require(row < 0, where, "two rows at ({}, {})", y, x);
    row = static_cast<int32_t>(segment.first_row + static_cast<int64_t>(i / 2));
  }
  return grid;
}

}  // namespace pronghorn
