#include "ops/grid_convolution.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "grid_convolution";

// The side of a square of that many taps; 0: it is none with a middle.
int64_t side_of(int64_t taps) {
  int64_t side = 1;
  while (side * side < taps) side += 2;
  return side * side == taps ? side : 0;
}

// Which row of the batch each tap of each row reads: [rows, taps], -1 outside of the grid.
using Neighbours = std::vector<int32_t>;

void find_neighbours(const CheckedBatch& batch, const Segment& segment, int64_t side,
                     Neighbours& neighbours) {
  const std::span<const int32_t> places = batch.coordinates().subspan(
      static_cast<size_t>(2 * segment.first_row), static_cast<size_t>(2 * segment.length));
  int64_t height = 0, width = 0;
  for (int64_t i = 0; i < segment.length; ++i) {
    const int64_t y = places[static_cast<size_t>(2 * i)],
                  x = places[static_cast<size_t>(2 * i + 1)];
    require(y >= 0 && x >= 0, kWhere, "a row at ({}, {}), outside of the grid", y, x);
    height = std::max(height, y + 1);
    width = std::max(width, x + 1);
  }
  // Sizes of 31 bits each: their product fits.
  require(height * width == segment.length, kWhere, "{} rows do not fill a grid of {} by {}",
          segment.length, height, width);
  std::vector<int32_t> grid(static_cast<size_t>(segment.length), -1);
  for (int64_t i = 0; i < segment.length; ++i) {
    const int64_t y = places[static_cast<size_t>(2 * i)],
                  x = places[static_cast<size_t>(2 * i + 1)];
    int32_t& row = grid[static_cast<size_t>(y * width + x)];
    require(row < 0, kWhere, "two rows at ({}, {})", y, x);
    row = static_cast<int32_t>(segment.first_row + i);
  }
  const int64_t reach = side / 2;
  for (int64_t i = 0; i < segment.length; ++i) {
    const int64_t y = places[static_cast<size_t>(2 * i)],
                  x = places[static_cast<size_t>(2 * i + 1)];
    for (int64_t tap = 0; tap < side * side; ++tap) {
      const int64_t at_y = y + tap / side - reach, at_x = x + tap % side - reach;
      const bool inside = at_y >= 0 && at_y < height && at_x >= 0 && at_x < width;
      neighbours.push_back(inside ? grid[static_cast<size_t>(at_y * width + at_x)] : -1);
    }
  }
}

Neighbours neighbours_of(const CheckedBatch& batch, int64_t side) {
  require(batch.coordinate_count() == 2 || batch.rows() == 0, kWhere,
          "rows have {} coordinates, not the 2 of a grid", batch.coordinate_count());
  Neighbours neighbours;
  neighbours.reserve(static_cast<size_t>(batch.rows() * side * side));
  for (const Segment& segment : batch.segments()) {
    require(segment.state == nullptr, kWhere, "keeps no state of a sequence");
    find_neighbours(batch, segment, side, neighbours);
  }
  return neighbours;
}

// The addresses that the kernels take. turned: the rows that read a row with a tap, which are those
// that it reads with the opposite one.
std::vector<const float*> addresses(const Neighbours& neighbours, int64_t taps, const Tensor& rows,
                                    const Tensor& zeros, bool turned) {
  std::vector<const float*> result(neighbours.size());
  for (size_t i = 0; i < neighbours.size(); ++i) {
    const size_t tap = i % static_cast<size_t>(taps), first = i - tap;
    const size_t from = turned ? first + static_cast<size_t>(taps) - 1 - tap : i;
    const int32_t row = neighbours[from];
    result[i] = row < 0 ? zeros.data() : rows.row(row);
  }
  return result;
}

}  // namespace

Tensor grid_convolution(const Context& context, const Tensor& x, const Tensor& weight,
                        const Tensor& bias, bool silu, const CheckedBatch& batch) {
  const int64_t channels = weight.rows(), taps = weight.columns(), side = side_of(taps);
  require(weight.contiguous() && side > 0 && x.columns() == channels, kWhere,
          "x {} does not fit weight {}", x.shape(), weight.shape());
  require(!bias.defined() || bias.size() == channels, kWhere, "bias of {} for {} channels",
          bias.size(), channels);
  require(x.rows() == batch.rows(), kWhere, "x has {} rows, the batch {}", x.rows(), batch.rows());
  const auto neighbours = std::make_shared<const Neighbours>(neighbours_of(batch, side));
  const Tensor zeros = Tensor::zeros({1, channels});
  const auto filter = [=] {
    return ConvolutionKernels::Filter{channels, taps, weight.data(),
                                      bias.defined() ? bias.data() : nullptr, silu};
  };
  const Tensor y = Tensor::empty({x.rows(), channels});
  const std::vector<const float*> inputs = addresses(*neighbours, taps, x, zeros, false);
  backend().convolution().forward(filter(), x.rows(), inputs.data(), y.data(), y.row_stride());
  if (!needs_gradient(context, y, x, weight, bias)) return y;
  context.tape->record([=] {
    if (!y.has_grad()) return;
    const Tensor dy = y.grad();
    ConvolutionKernels& kernels = backend().convolution();
    const Tensor pre_grad = Tensor::empty({y.rows(), channels});
    // Addresses are eight bytes a tap: they are made again, where the numbers of rows are kept.
    const std::vector<const float*> read = addresses(*neighbours, taps, x, zeros, false);
    kernels.backward(filter(), y.rows(), read.data(), dy.data(), dy.row_stride(), pre_grad.data(),
                     input_gradient(weight), input_gradient(bias));
    if (!x.requires_grad()) return;
    const std::vector<const float*> readers = addresses(*neighbours, taps, pre_grad, zeros, true);
    kernels.backward_input(filter(), y.rows(), readers.data(), input_gradient(x));
  });
  return y;
}

}  // namespace pronghorn
