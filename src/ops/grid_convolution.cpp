#include "ops/grid_convolution.h"

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/grid.h"
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

Neighbours neighbours_of(const CheckedBatch& batch, int64_t side) {
  Neighbours neighbours;
  neighbours.reserve(static_cast<size_t>(batch.rows() * side * side));
  const int64_t reach = side / 2;
  for (const Segment& segment : batch.segments()) {
    const Grid grid = grid_of(batch, segment, kWhere);
    for (int64_t row = segment.first_row; row < segment.first_row + segment.length; ++row) {
      const int32_t* place = batch.coordinates().data() + 2 * row;
      for (int64_t tap = 0; tap < side * side; ++tap) {
        neighbours.push_back(grid.at(place[0] + tap / side - reach, place[1] + tap % side - reach));
      }
    }
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
