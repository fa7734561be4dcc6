// The convolution over a grid against a naive form, and the mean over segments.
#include "ops/grid_convolution.h"

#include <gmock/gmock.h>

#include "operator_check.h"
#include "ops/segment_mean.h"
#include "support/errors.h"

namespace pronghorn {
namespace {

using check::Values;
using testing::HasSubstr;
using testing_support::error_of;

// Images of height x width rows; the last also has what is left of `rows`, in one line.
Batch grids(int64_t rows, int64_t height, int64_t width) {
  Batch batch;
  while (batch.rows() < rows) {
    const int64_t first = batch.rows(), left = rows - first;
    const bool whole = left >= height * width;
    batch.segments.push_back({nullptr, first, whole ? height * width : left, Mask::full});
    for (int64_t i = 0; i < batch.segments.back().length; ++i) {
      batch.positions.push_back(static_cast<int32_t>(i));
      const int64_t columns = whole ? width : left;
      batch.coordinates.push_back(static_cast<int32_t>(i / columns));
      batch.coordinates.push_back(static_cast<int32_t>(i % columns));
    }
  }
  return batch;
}

// By definition: for each place all places of its image, and the tap between them if there is one.
Values reference(const Values& in, const Batch& batch, int64_t channels, bool bias, bool silu) {
  std::vector<double> y;
  for (const Segment& segment : batch.segments) {
    for (int64_t row = segment.first_row; row < segment.first_row + segment.length; ++row) {
      for (int64_t c = 0; c < channels; ++c) {
        double z = bias ? in[2][static_cast<size_t>(c)] : 0;
        for (int64_t other = segment.first_row; other < segment.first_row + segment.length;
             ++other) {
          const auto at = [&](int64_t r, int64_t axis) {
            return batch.coordinates[static_cast<size_t>(2 * r + axis)];
          };
          const int dy = at(other, 0) - at(row, 0), dx = at(other, 1) - at(row, 1);
          if (std::abs(dy) > 1 || std::abs(dx) > 1) continue;
          z += in[1][static_cast<size_t>(c * 9 + (dy + 1) * 3 + dx + 1)] *
               in[0][static_cast<size_t>(other * channels + c)];
        }
        y.push_back(silu ? z / (1 + std::exp(-z)) : z);
      }
    }
  }
  return {y};
}

TEST(GridConvolution, IsTheSumOverNeighbours) {
  for (const bool bias : {true, false}) {
    for (const bool silu : {true, false}) {
      constexpr int64_t kChannels = 5;
      check::OperatorCheck check;
      check.name = fmt::format("grid_convolution bias {} silu {}", bias, silu);
      check.inputs = [=](int64_t rows) {
        std::vector<check::Input> inputs = {{{rows, kChannels}}, {{kChannels * 9}}};
        if (bias) inputs.push_back({{kChannels}});
        return inputs;
      };
      const auto batch = [](int64_t rows) {
        return rows > 10 ? grids(rows, 12, 8) : grids(rows, 2, 2);
      };
      check.forward = [=](const Context& context, const std::vector<Tensor>& in) {
        return std::vector<Tensor>{grid_convolution(context, in[0], in[1].reshape({kChannels, 9}),
                                                    bias ? in[2] : Tensor(), silu,
                                                    batch(in[0].rows()))};
      };
      check.reference = [=](const Values& in, int64_t rows) {
        return reference(in, batch(rows), kChannels, bias, silu);
      };
      check_operator(check);
    }
  }
}

TEST(GridConvolution, RefusesWhatIsNoGrid) {
  const Tensor x = Tensor::zeros({4, 2}), weight = Tensor::zeros({2, 9});
  const auto refusal = [&](const std::function<void(Batch&)>& change) {
    Batch batch = grids(4, 2, 2);
    change(batch);
    return error_of([&] { grid_convolution({}, x, weight, {}, false, batch); });
  };
  EXPECT_EQ(refusal([](Batch&) {}), "no error");
  EXPECT_THAT(refusal([](Batch& b) { b.coordinates[0] = 3; }), HasSubstr("do not fill a grid"));
  EXPECT_THAT(refusal([](Batch& b) { b.coordinates[0] = -1; }), HasSubstr("outside of the grid"));
  EXPECT_THAT(refusal([](Batch& b) { b.coordinates[1] = 1; }), HasSubstr("two rows at (0, 1)"));
  EXPECT_THAT(refusal([](Batch& b) { b.coordinates.clear(); }), HasSubstr("0 coordinates"));
  EXPECT_THAT(refusal([](Batch& b) { b.coordinates[0] = INT32_MAX; }), HasSubstr("do not fill"));
  EXPECT_THAT(error_of([&] {
                grid_convolution({}, x, Tensor::zeros({2, 4}), {}, false, grids(4, 2, 2));
              }),
              HasSubstr("does not fit"));
}

TEST(SegmentMean, EachRowIsTheMeanOfItsSegment) {
  check::OperatorCheck check;
  check.name = "segment_mean";
  check.inputs = [](int64_t rows) { return std::vector<check::Input>{{{rows, 3}}}; };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{segment_mean(context, in[0], grids(in[0].rows(), 2, 2))};
  };
  check.reference = [](const Values& in, int64_t rows) {
    Values out = in;
    for (const Segment& segment : grids(rows, 2, 2).segments) {
      for (int64_t c = 0; c < 3; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < segment.length; ++i) {
          sum += in[0][static_cast<size_t>((segment.first_row + i) * 3 + c)];
        }
        for (int64_t i = 0; i < segment.length; ++i) {
          out[0][static_cast<size_t>((segment.first_row + i) * 3 + c)] =
              sum / static_cast<double>(segment.length);
        }
      }
    }
    return out;
  };
  check_operator(check);
}

// Sequences of a row for each two of the others, and one more.
Batch longer(const Batch& batch) {
  Batch result;
  for (const Segment& segment : batch.segments) {
    const int64_t length = 2 * segment.length + 1;
    result.segments.push_back({nullptr, result.rows(), length, Mask::full});
    for (int32_t i = 0; i < length; ++i) result.positions.push_back(i);
  }
  return result;
}

TEST(SegmentMean, RowsOfAnotherBatchAreGivenTheMeanOfTheirSequence) {
  check::OperatorCheck check;
  check.name = "segment_mean of another batch";
  check.inputs = [](int64_t rows) { return std::vector<check::Input>{{{rows, 3}}}; };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    const Batch batch = grids(in[0].rows(), 2, 2);
    return std::vector<Tensor>{segment_mean(context, in[0], batch, longer(batch))};
  };
  check.reference = [](const Values& in, int64_t rows) {
    std::vector<double> out;
    for (const Segment& segment : grids(rows, 2, 2).segments) {
      for (int64_t to = 0; to < 2 * segment.length + 1; ++to) {
        for (int64_t c = 0; c < 3; ++c) {
          double sum = 0;
          for (int64_t i = 0; i < segment.length; ++i) {
            sum += in[0][static_cast<size_t>((segment.first_row + i) * 3 + c)];
          }
          out.push_back(sum / static_cast<double>(segment.length));
        }
      }
    }
    return Values{out};
  };
  check_operator(check);
  const Batch one = grids(4, 2, 2), two = grids(8, 2, 2);
  EXPECT_THAT(error_of([&] {
                segment_mean({}, Tensor::zeros({4, 3}), one, two);
              }),
              HasSubstr("of 1 sequences for 2"));
}

}  // namespace
}  // namespace pronghorn
