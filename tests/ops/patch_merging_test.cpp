// Merging of neighbours in a grid: rows against a loop over places in float64, edges of odd grids,
// gradients, and what is refused.
#include "ops/patch_merging.h"

#include <gmock/gmock.h>

#include <functional>
#include <utility>
#include <vector>

#include "operator_check.h"
#include "support/errors.h"

namespace pronghorn {
namespace {

using check::Values;
using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::error_of;

// Images of height x width rows; the last has what is left of `rows`, in one line. odd_order: rows
// of an image are in the opposite order, which coordinates tell.
Batch grids(int64_t rows, int64_t height, int64_t width, bool odd_order = false) {
  Batch batch;
  while (batch.rows() < rows) {
    const int64_t first = batch.rows(), left = rows - first;
    const bool whole = left >= height * width;
    const int64_t length = whole ? height * width : left, columns = whole ? width : left;
    batch.segments.push_back({nullptr, first, length, Mask::full});
    for (int64_t i = 0; i < length; ++i) {
      const int64_t place = odd_order ? length - 1 - i : i;
      batch.positions.push_back(static_cast<int32_t>(i));
      batch.coordinates.push_back(static_cast<int32_t>(place / columns));
      batch.coordinates.push_back(static_cast<int32_t>(place % columns));
    }
  }
  return batch;
}

// By definition: for each square and each place in it the row that is there, found among all.
Values reference(const Values& in, const Batch& batch, int64_t columns) {
  std::vector<double> y;
  for (const Segment& segment : batch.segments) {
    int height = 0, width = 0;
    const auto at = [&](int64_t row, int64_t axis) {
      return batch.coordinates[static_cast<size_t>(2 * row + axis)];
    };
    for (int64_t i = 0; i < segment.length; ++i) {
      height = std::max(height, at(segment.first_row + i, 0) + 1);
      width = std::max(width, at(segment.first_row + i, 1) + 1);
    }
    for (int top = 0; top < height; top += 2) {
      for (int left = 0; left < width; left += 2) {
        // x0, x1, x2 and x3 of Swin Transformer's code: down first, then right.
        for (int corner = 0; corner < 4; ++corner) {
          const int down = corner % 2, right = corner / 2;
          for (int64_t c = 0; c < columns; ++c) {
            double value = 0;
            for (int64_t i = 0; i < segment.length; ++i) {
              const int64_t row = segment.first_row + i;
              if (at(row, 0) == top + down && at(row, 1) == left + right) {
                value = in[0][static_cast<size_t>(row * columns + c)];
              }
            }
            y.push_back(value);
          }
        }
      }
    }
  }
  return {y};
}

TEST(PatchMerging, RowsOfASquareAreSideBySide) {
  constexpr int64_t kColumns = 3;
  // Even sides; an odd height; both odd.
  const std::vector<std::pair<int64_t, int64_t>> sizes = {{2, 2}, {3, 4}, {5, 7}};
  for (const auto& [height, width] : sizes) {
    for (const bool odd_order : {false, true}) {
      check::OperatorCheck check;
      check.name = fmt::format("merge_patches {} x {}, order {}", height, width, odd_order);
      check.inputs = [](int64_t rows) { return std::vector<check::Input>{{{rows, kColumns}}}; };
      const auto batch = [height = height, width = width, odd_order](int64_t rows) {
        return grids(rows, height, width, odd_order);
      };
      check.forward = [=](const Context& context, const std::vector<Tensor>& in) {
        return std::vector<Tensor>{merge_patches(context, in[0], merged_grid(batch(in[0].rows())))};
      };
      check.reference = [=](const Values& in, int64_t rows) {
        return reference(in, batch(rows), kColumns);
      };
      check_operator(check);
    }
  }
}

TEST(PatchMerging, SquaresAreAGridAgain) {
  const MergedGrid grid = merged_grid(grids(17, 3, 4));  // 3 x 4, and a line of 5
  ASSERT_EQ(grid.batch.segments.size(), 2u);
  EXPECT_EQ(grid.batch.segments[0].length, 4);
  EXPECT_EQ(grid.batch.segments[1].first_row, 4);
  EXPECT_EQ(grid.batch.segments[1].length, 3);
  EXPECT_EQ(grid.batch.segments[1].mask, Mask::full);
  EXPECT_THAT(grid.batch.positions, ElementsAre(0, 1, 2, 3, 0, 1, 2));
  EXPECT_THAT(grid.batch.coordinates, ElementsAre(0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 0, 2));
  EXPECT_THAT(grid.corners[0], ElementsAre(0, 2, 8, 10, 12, 14, 16));
  EXPECT_THAT(grid.corners[1], ElementsAre(4, 6, -1, -1, -1, -1, -1));
  EXPECT_THAT(grid.corners[2], ElementsAre(1, 3, 9, 11, 13, 15, -1));
  // So it can be merged on, to a single square.
  EXPECT_EQ(merged_grid(merged_grid(grid.batch).batch).batch.segments[0].length, 1);
}

TEST(PatchMerging, RefusesWhatIsNoGrid) {
  const auto refusal = [](const std::function<void(Batch&)>& change) {
    Batch batch = grids(4, 2, 2);
    change(batch);
    return error_of([&] { merged_grid(batch); });
  };
  EXPECT_EQ(refusal([](Batch&) {}), "no error");
  EXPECT_THAT(refusal([](Batch& b) { b.coordinates[0] = 3; }), HasSubstr("do not fill a grid"));
  EXPECT_THAT(refusal([](Batch& b) { b.coordinates[0] = -1; }), HasSubstr("outside of the grid"));
  EXPECT_THAT(refusal([](Batch& b) { b.coordinates[1] = 1; }), HasSubstr("two rows at (0, 1)"));
  EXPECT_THAT(refusal([](Batch& b) { b.coordinates.clear(); }), HasSubstr("0 coordinates"));
}

}  // namespace
}  // namespace pronghorn
