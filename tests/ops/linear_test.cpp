#include "ops/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/random.h"

namespace pronghorn {
namespace {

Tensor random_tensor(Shape shape, const char* stream) {
  Random random(11, stream);
  const Tensor tensor = Tensor::empty(std::move(shape));
  for (float& value : tensor.values()) value = static_cast<float>(random.uniform(-1, 1));
  return tensor;
}

// The loss sum(y * g), whose gradients are those of a linear map: exact in float64.
struct Gradients {
  std::vector<double> x, weight, bias;
};

Gradients reference(const Tensor& x, const Tensor& weight, const Tensor& g) {
  const int64_t rows = x.rows(), in = x.columns(), out = g.columns();
  Gradients result{std::vector<double>(static_cast<size_t>(rows * in)),
                   std::vector<double>(static_cast<size_t>(out * in)),
                   std::vector<double>(static_cast<size_t>(out))};
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < out; ++j) {
      const double slope = g.row(i)[j];
      result.bias[static_cast<size_t>(j)] += slope;
      for (int64_t p = 0; p < in; ++p) {
        result.x[static_cast<size_t>(i * in + p)] += slope * weight.row(j)[p];
        result.weight[static_cast<size_t>(j * in + p)] += slope * x.row(i)[p];
      }
    }
  }
  return result;
}

// Sums of at most 64 terms below 1 in f32: 64 * 64 / 2 roundings of at most 2^-24 each in the worst
// case.
constexpr double kTolerance = 64 * 32 * 0x1.0p-24;

void expect_near(const Tensor& tensor, const std::vector<double>& expected, double offset = 0) {
  for (int64_t i = 0; i < tensor.rows(); ++i) {
    for (int64_t j = 0; j < tensor.columns(); ++j) {
      const double value = expected[static_cast<size_t>(i * tensor.columns() + j)];
      EXPECT_NEAR(tensor.row(i)[j], value + offset, kTolerance) << i << ", " << j;
    }
  }
}

TEST(Linear, GradientsEqualFloat64) {
  const Tensor x = random_tensor({19, 30}, "x"), w = random_tensor({21, 30}, "w");
  const Tensor bias = random_tensor({21}, "b"), g = random_tensor({19, 21}, "g");
  for (const Tensor& tensor : {x, w, bias}) tensor.set_requires_grad(true);
  Tape tape;
  const Tensor y = linear({&tape}, x, Weight(w), bias);
  ASSERT_TRUE(y.requires_grad());
  y.give_grad(g);
  tape.run_backward();
  const Gradients expected = reference(x, w, g);
  expect_near(x.grad(), expected.x);
  expect_near(w.grad(), expected.weight);
  expect_near(bias.grad().reshape({1, 21}), expected.bias);
}

TEST(Linear, GradientEqualsFiniteDifferences) {
  const Tensor x = random_tensor({4, 6}, "x"), w = random_tensor({5, 6}, "w");
  const Tensor g = random_tensor({4, 5}, "g");
  w.set_requires_grad(true);
  const auto loss = [&] {
    double sum = 0;
    const Tensor y = linear({}, x, Weight(w));
    for (int64_t i = 0; i < y.size(); ++i) sum += double{y.data()[i]} * g.data()[i];
    return sum;
  };
  Tape tape;
  linear({&tape}, x, Weight(w)).give_grad(g);
  tape.run_backward();
  const Tensor gradient = w.grad();
  for (int64_t i = 0; i < w.size(); ++i) {
    const float value = w.data()[i];
    constexpr float kStep = 0.25f;  // the map is linear: a wide step has no error of its own
    w.data()[i] = value + kStep;
    const double above = loss();
    w.data()[i] = value - kStep;
    const double below = loss();
    w.data()[i] = value;
    EXPECT_NEAR((above - below) / (2 * kStep), gradient.data()[i], 1e-5);  // f32 sums over 0.5
  }
}

TEST(Linear, SlicesAndAccumulation) {
  const Tensor base = random_tensor({9, 40}, "x"), w = random_tensor({12, 16}, "w");
  base.set_requires_grad(true);
  w.set_requires_grad(true);
  const Tensor x = base.column_slice(8, 16), g = random_tensor({9, 6}, "g");
  Tape tape;
  const Weight weight(w);
  const Tensor first = linear({&tape}, x, weight), second = linear({&tape}, x, weight);
  // Only a slice of each result is used, so the rest of its gradient is zero.
  first.column_slice(3, 6).give_grad(g);
  second.column_slice(3, 6).give_grad(g);
  tape.run_backward();
  const Tensor whole = Tensor::zeros({9, 12});
  for (int64_t i = 0; i < 9; ++i) {
    for (int64_t j = 0; j < 6; ++j) whole.row(i)[3 + j] = 2 * g.row(i)[j];
  }
  const Gradients expected = reference(x, w, whole);
  expect_near(w.grad(), expected.weight);
  expect_near(base.grad().column_slice(8, 16), expected.x);
  expect_near(base.grad().column_slice(0, 8), std::vector<double>(9 * 8));
  expect_near(base.grad().column_slice(24, 16), std::vector<double>(9 * 16));
}

TEST(Linear, AResultNobodyUsesHasNoGradient) {
  const Tensor x = random_tensor({2, 3}, "x"), w = random_tensor({4, 3}, "w");
  w.set_requires_grad(true);
  Tape tape;
  linear({&tape}, x, Weight(w));
  tape.run_backward();
  EXPECT_FALSE(w.has_grad());
}

TEST(Linear, RecordsOnlyWhatIsNeeded) {
  const Tensor x = random_tensor({2, 3}, "x"), w = random_tensor({4, 3}, "w");
  Tape tape;
  EXPECT_FALSE(linear({&tape}, x, Weight(w)).requires_grad());
  EXPECT_TRUE(tape.empty());
  w.set_requires_grad(true);
  EXPECT_FALSE(linear({}, x, Weight(w)).requires_grad());
}

TEST(Linear, WidthsMustAgree) {
  const Weight weight(Tensor::zeros({4, 3}));
  EXPECT_THROW(linear({}, Tensor::zeros({2, 4}), weight), Error);
  EXPECT_THROW(linear({}, Tensor::zeros({2, 3}), weight, Tensor::zeros({3})), Error);
  EXPECT_THROW(linear({}, Tensor::zeros({2, 3}), Weight()), Error);
}

}  // namespace
}  // namespace pronghorn
