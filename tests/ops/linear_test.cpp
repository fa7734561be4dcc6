#include "ops/linear.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "ops/linear_maps.h"

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

TEST(Linear, SeveralOfOneInputAreThoseOfEach) {
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    for (const int64_t rows : {1, 7, 40, 130}) {
      std::vector<Tensor> numbers = {random_tensor({48, 30}, "q"), random_tensor({16, 30}, "k"),
                                     random_tensor({300, 30}, "v"), random_tensor({48}, "bias"),
                                     random_tensor({rows, 30}, "x")};
      // All that comes of it, in a row.
      const auto results = [&](bool together, bool taped) {
        for (const Tensor& tensor : numbers) {
          tensor.clear_grad();
          tensor.set_requires_grad(taped);
        }
        const std::vector<Weight> weights(numbers.begin(), numbers.begin() + 3);
        const Tensor &bias = numbers[3], &x = numbers[4];
        const Weight none;
        Tape tape;
        Context context;
        context.precision = precision;
        if (taped) context.tape = &tape;
        std::array<Tensor, 4> y;
        if (together) {
          y = linear_maps(context, x,
                          {{&weights[0], &bias}, {&weights[1]}, {&none}, {&weights[2]}});
        } else {
          y = {linear(context, x, weights[0], bias), linear(context, x, weights[1]), Tensor(),
               linear(context, x, weights[2])};
        }
        EXPECT_FALSE(y[2].defined());
        std::vector<float> all;
        const auto take = [&](const Tensor& tensor) {
          for (const float value : tensor.read()) all.push_back(value);
        };
        for (const Tensor& tensor : y) {
          if (tensor.defined()) take(tensor);
        }
        if (!taped) return all;
        y[0].give_grad(random_tensor(y[0].shape(), "gq"));
        y[3].give_grad(random_tensor(y[3].shape(), "gv"));  // nobody uses the second
        tape.run_backward();
        EXPECT_FALSE(numbers[1].has_grad());
        for (const size_t i : {0, 2, 3, 4}) take(numbers[i].grad());
        return all;
      };
      EXPECT_EQ(results(true, false), results(false, false)) << rows;
      EXPECT_EQ(results(true, true), results(false, true)) << rows;
    }
  }
}

TEST(Linear, SeveralWithAnAdapterHaveItAdded) {
  const Tensor x = random_tensor({3, 8}, "x");
  const Weight q(random_tensor({5, 8}, "q")), k(random_tensor({6, 8}, "k"));
  q.adapt(std::make_shared<LowRank>(
      LowRank{Weight(random_tensor({2, 8}, "a")), Weight(random_tensor({5, 2}, "b")), 0.5f}));
  const auto [yq, yk] = linear_maps({}, x, {{&q}, {&k}});
  EXPECT_EQ(yq.read(), linear({}, x, q).read());
  EXPECT_EQ(yk.read(), linear({}, x, k).read());
}

TEST(Linear, WidthsMustAgree) {
  const Weight weight(Tensor::zeros({4, 3}));
  EXPECT_THROW(linear({}, Tensor::zeros({2, 4}), weight), Error);
  EXPECT_THROW(linear({}, Tensor::zeros({2, 3}), weight, Tensor::zeros({3})), Error);
  EXPECT_THROW(linear({}, Tensor::zeros({2, 3}), Weight()), Error);
  EXPECT_THROW(linear_maps({}, Tensor::zeros({2, 4}), {{&weight}, {&weight}}), Error);
}

}  // namespace
}  // namespace pronghorn
