#include "ops/rg_lru_gates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "ops/operator_check.h"
#include "support/errors.h"

namespace pronghorn {
namespace {

using check::Input;
using check::Values;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Rows 0, 3, 6, ... are first tokens.
std::vector<int32_t> positions_of(int64_t rows) {
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < rows; ++i) positions.push_back(static_cast<int32_t>(i % 3));
  return positions;
}

// Two blocks of unlike width, one of them with vectors that are not full.
check::OperatorCheck gates(std::string name, double low, double high) {
  constexpr int64_t kFirst = 21, kSecond = 16, kWidth = kFirst + kSecond;
  check::OperatorCheck operator_check;
  operator_check.name = std::move(name);
  operator_check.inputs = [=](int64_t rows) {
    return std::vector<Input>{{{rows, kWidth}}, {{rows, kFirst}},  {{rows, kSecond}},
                              {{rows, kFirst}}, {{rows, kSecond}}, {{kWidth}, low, high}};
  };
  operator_check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    const std::vector<Tensor> recurrent = {in[1], in[2]}, input = {in[3], in[4]};
    const RgLruDecay decay =
        rg_lru_gates(context, in[0], recurrent, input, in[5], positions_of(in[0].rows()));
    return std::vector<Tensor>{decay.log_a, decay.x};
  };
  operator_check.reference = [=](const Values& in, int64_t rows) {
    Values out(2);
    const std::vector<int32_t> positions = positions_of(rows);
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t c = 0; c < kWidth; ++c) {
        const bool second = c >= kFirst;
        const auto at = static_cast<size_t>(second ? t * kSecond + c - kFirst : t * kFirst + c);
        const double r = sigmoid(in[second ? 2 : 1][at]), i = sigmoid(in[second ? 4 : 3][at]);
        const double log_a = -8 * r * std::log1p(std::exp(in[5][static_cast<size_t>(c)]));
        const double a = std::exp(log_a);
        const double root = positions[static_cast<size_t>(t)] == 0 ? 1 : std::sqrt(1 - a * a);
        out[0].push_back(log_a);
        out[1].push_back(root * i * in[0][static_cast<size_t>(t * kWidth + c)]);
      }
    }
    return out;
  };
  return operator_check;
}

TEST(RgLruGates, EqualTheEquations) {
  check::check_operator(gates("rg_lru_gates", -4, 2));
  // Decays from 0.9997 on, where 1 - a^2 cancels. The gradient of the root is then 40 at most.
  check::OperatorCheck slow = gates("rg_lru_gates near a = 1", -9, -7);
  slow.gradient_tolerance = 2e-5;  // of the root, which divides what is rounded by 0.025
  check::check_operator(slow);
}

// With softplus(-40) = 4e-18 the root is 8e-9 and its derivative 1e8: the reference makes it 1000.
TEST(RgLruGates, GradientOfTheRootIsCapped) {
  Tape tape;
  const Context context{&tape, Precision::f32};
  const auto one = [](float value) { return Tensor::full({1, 1}, value); };
  const Tensor u = one(1), recurrent = one(0), input = one(0), parameter = Tensor::full({1}, -40);
  parameter.set_requires_grad(true);
  recurrent.set_requires_grad(true);
  const std::vector<int32_t> positions = {1};
  const RgLruDecay out =
      rg_lru_gates(context, u, {&recurrent, 1}, {&input, 1}, parameter, positions);
  out.x.give_grad(one(1));
  tape.run_backward();
  // d x / d log a = -0.5 * 2 a^2 / 1e-3, d log a / d r = -8 softplus / 4, / d parameter = -4
  // sigmoid.
  const double softplus = std::exp(-40.0);
  EXPECT_NEAR(recurrent.grad().data()[0] / (1000 * 2 * softplus), 1, 1e-5);
  EXPECT_NEAR(parameter.grad().data()[0] / (1000 * 4 * softplus), 1, 1e-5);
}

// The root of 1 - a^2 keeps its digits however close a is to 1: a few roundings of f32, where the
// difference from 1 would lose all of them.
TEST(RgLruGates, RootIsExactNearOne) {
  for (const float value : {-4.0f, -8.0f, -12.0f, -16.0f}) {
    const Tensor u = Tensor::full({1, 1}, 1), gate = Tensor::full({1, 1}, 0);
    const std::vector<int32_t> positions = {7};
    const Tensor x =
        rg_lru_gates({}, u, {&gate, 1}, {&gate, 1}, Tensor::full({1}, value), positions).x;
    const double log_a = -4 * std::log1p(std::exp(static_cast<double>(value)));
    EXPECT_NEAR(x.data()[0] / (0.5 * std::sqrt(-std::expm1(2 * log_a))), 1, 1e-6) << value;
  }
}

TEST(RgLruGates, RefusesShapesThatDoNotFit) {
  const Tensor u = Tensor::zeros({2, 4}), gate = Tensor::zeros({2, 3}),
               parameter = Tensor::zeros({4});
  const std::vector<int32_t> positions = {0, 1};
  EXPECT_THAT(testing_support::error_of([&] {
                rg_lru_gates({}, u, {&gate, 1}, {&gate, 1}, parameter, positions);
              }),
              ::testing::HasSubstr("gates of 3 channels for 4"));
}

}  // namespace
}  // namespace pronghorn
