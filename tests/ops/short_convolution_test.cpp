// What the five laws (tests/laws) leave to the short convolution itself: gradients over many tiles
// of rows, bits that do not depend on cuts of any length, and errors.
#include "ops/short_convolution.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "base/error.h"
#include "base/random.h"
#include "base/threads.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using testing_support::batch_of;

using Doubles = std::vector<double>;

Tensor random_tensor(Shape shape, uint64_t seed) {
  Random random(seed);
  const Tensor tensor = Tensor::empty(std::move(shape));
  for (float& value : tensor.values()) value = static_cast<float>(random.uniform(-1, 1));
  return tensor;
}

struct Naive {
  Doubles y, x_grad, weight_grad, bias_grad;
};

Naive naive(const Tensor& x, const Tensor& weight, const Tensor& bias, const Batch& batch,
            const Tensor& dy) {
  const int64_t channels = weight.rows(), taps = weight.columns();
  Naive out;
  const auto elements = static_cast<size_t>(x.size());
  out.y.resize(elements);
  out.x_grad.resize(elements);
  out.weight_grad.resize(static_cast<size_t>(weight.size()));
  out.bias_grad.resize(static_cast<size_t>(channels));
  for (const Segment& segment : batch.segments) {
    for (int64_t i = 0; i < segment.length; ++i) {
      const int64_t row = segment.first_row + i;
      for (int64_t c = 0; c < channels; ++c) {
        double z = bias.data()[c];
        for (int64_t back = 0; back < std::min(taps, i + 1); ++back) {
          z += double{weight.row(c)[taps - 1 - back]} * x.row(row - back)[c];
        }
        const double s = 1 / (1 + std::exp(-z));
        out.y[static_cast<size_t>(row * channels + c)] = z * s;
        const double g = dy.row(row)[c] * s * (1 + z * (1 - s));
        out.bias_grad[static_cast<size_t>(c)] += g;
        for (int64_t back = 0; back < std::min(taps, i + 1); ++back) {
          const int64_t tap = taps - 1 - back;
          out.weight_grad[static_cast<size_t>(c * taps + tap)] += g * x.row(row - back)[c];
          out.x_grad[static_cast<size_t>((row - back) * channels + c)] += g * weight.row(c)[tap];
        }
      }
    }
  }
  return out;
}

void expect_close(const Tensor& actual, const Doubles& expected, double tolerance,
                  const char* what) {
  double largest = 0, error = 0;
  for (int64_t i = 0; i < actual.size(); ++i) {
    const double value = expected[static_cast<size_t>(i)];
    largest = std::max(largest, std::abs(value));
    error =
        std::max(error, std::abs(actual.row(i / actual.columns())[i % actual.columns()] - value));
  }
  EXPECT_LT(error, tolerance * largest) << what;
}

class ShortConvolutionTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { set_cpu_instruction_set(GetParam()); }
  void TearDown() override {
    set_cpu_instruction_set(cpu_instruction_sets().back());
    set_thread_count(4);
  }
};

TEST_P(ShortConvolutionTest, GradientsOverManyTilesAndGroups) {
  const Batch batch = batch_of({150, 1, 0, 2, 147});
  // More than one group of 512 channels, and a ragged one; x is a column slice.
  for (const int64_t taps : {4, 3}) {
    const int64_t rows = batch.rows(), channels = 531;
    const Tensor x = random_tensor({rows, channels + 9}, 1).column_slice(4, channels);
    const Tensor weight = random_tensor({channels, taps}, 2), bias = random_tensor({channels}, 3);
    const Tensor dy = random_tensor({rows, channels}, 4);
    const Naive expected = naive(x, weight, bias, batch, dy);
    std::vector<float> bits[2];
    for (const int threads : {1, 4}) {
      set_thread_count(threads);
      Tape tape;
      Context context;
      context.tape = &tape;
      for (const Tensor& input : {x, weight, bias}) {
        input.clear_grad();
        input.set_requires_grad(true);
      }
      const Tensor y = short_convolution(context, x, weight, bias, true, batch, {0, 0});
      y.give_grad(dy);
      tape.run_backward();
      // Five rounded additions a row; sums over 300 rows for the parameters.
      expect_close(y, expected.y, 2e-6, "y");
      expect_close(x.grad(), expected.x_grad, 2e-6, "x");
      expect_close(weight.grad(), expected.weight_grad, 1e-5, "weight");
      expect_close(bias.grad(), expected.bias_grad, 1e-5, "bias");
      std::vector<float>& all = bits[threads == 1 ? 0 : 1];
      for (const Tensor& input : {x, weight, bias}) {
        const Tensor grad = input.grad().clone();
        all.insert(all.end(), grad.values().begin(), grad.values().end());
      }
    }
    EXPECT_EQ(bits[0], bits[1]) << "gradients depend on the number of threads";
  }
}

TEST_P(ShortConvolutionTest, AnyCutGivesTheSameBits) {
  const int64_t channels = 21;
  const Tensor x = random_tensor({150, channels}, 1), weight = random_tensor({channels, 4}, 2);
  const Tensor whole = short_convolution({}, x, weight, Tensor(), true, batch_of({150}), {0, 0});
  auto layout = std::make_shared<StateLayout>();
  layout->layers = {{short_convolution_journal(channels, 4)}};
  const auto step = [&](SequenceState& state, int64_t row, int64_t count) {
    Batch batch = batch_of({count});
    for (int32_t& position : batch.positions) position += static_cast<int32_t>(row);
    batch.segments[0].state = &state;
    const Tensor y =
        short_convolution({}, x.row_slice(row, count), weight, Tensor(), true, batch, {0, 0});
    state.advance(count);
    for (int64_t i = 0; i < y.size(); ++i) {
      ASSERT_EQ(y.data()[i], whole.row(row)[i]) << "row " << row + i / channels;
    }
  };
  for (const std::vector<int64_t>& cuts : std::vector<std::vector<int64_t>>{
           {150}, {100, 1, 1, 48}, {1, 16, 17, 33, 83}, {2, 1, 1, 146}}) {
    SequenceState state(layout);
    int64_t row = 0;
    for (const int64_t count : cuts) {
      step(state, row, count);
      row += count;
    }
    // A long sequence keeps a bounded number of rows, and can go back 16 tokens.
    EXPECT_GE(state.journal(0, 0).first_row(), 150 - 2 * kExactStep - 3);
    state.truncate(134);
    step(state, 134, 16);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ShortConvolutionTest, testing::ValuesIn(cpu_instruction_sets()),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(ShortConvolution, RejectsWrongShapesAndGradientsThroughStates) {
  const Tensor x = random_tensor({8, 16}, 1), weight = random_tensor({16, 4}, 2);
  const auto run = [&](const Context& context, const Tensor& bias, const Batch& batch) {
    return short_convolution(context, x, weight, bias, false, batch, {0, 0});
  };
  EXPECT_THROW(run({}, random_tensor({15}, 3), batch_of({8})), Error);
  EXPECT_THROW(run({}, Tensor(), batch_of({7})), Error);
  auto layout = std::make_shared<StateLayout>();
  layout->layers = {{short_convolution_journal(16, 4)}};
  SequenceState state(layout);
  Batch batch = batch_of({8});
  batch.segments[0].parents = {-1, 0, 1, 2, 3, 4, 5, 7};
  EXPECT_THROW(run({}, Tensor(), batch), Error) << "a row that is its own parent";
  batch.segments[0].parents.clear();
  batch.segments[0].state = &state;
  weight.set_requires_grad(true);
  Tape tape;
  Context context;
  context.tape = &tape;
  EXPECT_THROW(run(context, Tensor(), batch), Error);
}

}  // namespace
}  // namespace pronghorn
