#include "ops/patch_merging.h"

#include <algorithm>
#include <utility>

#include "ops/grid.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "merge_patches";

}  // namespace

MergedGrid merged_grid(const CheckedBatch& batch) {
  MergedGrid merged;
  for (const Segment& segment : batch.segments()) {
    const Grid grid = grid_of(batch, segment, kWhere);
    Segment squares = segment;
    squares.first_row = merged.batch.rows();
    for (int64_t y = 0; y < grid.height; y += 2) {
      for (int64_t x = 0; x < grid.width; x += 2) {
        for (int64_t corner = 0; corner < 4; ++corner) {
          merged.corners[static_cast<size_t>(corner)].push_back(
              grid.at(y + corner % 2, x + corner / 2));
        }
        merged.batch.coordinates.push_back(static_cast<int32_t>(y / 2));
        merged.batch.coordinates.push_back(static_cast<int32_t>(x / 2));
        merged.batch.positions.push_back(
            static_cast<int32_t>(merged.batch.rows() - squares.first_row));
      }
    }
    squares.length = merged.batch.rows() - squares.first_row;
    merged.batch.segments.push_back(std::move(squares));
  }
  return merged;
}

Tensor merge_patches(const Context& context, const Tensor& x, const MergedGrid& grid) {
  const auto outside = [](const std::vector<int32_t>& rows) {
    return std::ranges::find(rows, -1) != rows.end();
  };
  Tensor from = x;  // and behind it what is outside
  if (std::ranges::any_of(grid.corners, outside)) {
    const std::array<Tensor, 2> padded = {x, Tensor::zeros({1, x.columns()})};
    from = concatenate_rows(context, padded);
  }
  std::array<Tensor, 4> sides;
  for (size_t corner = 0; corner < sides.size(); ++corner) {
    std::vector<int32_t> rows = grid.corners[corner];
    std::ranges::replace(rows, -1, static_cast<int32_t>(x.rows()));
    sides[corner] = embedding(context, from, rows);
  }
  return concatenate_columns(context, sides);
}

}  // namespace pronghorn
