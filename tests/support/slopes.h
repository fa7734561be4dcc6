// Gradients beside differences of what they are gradients of.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "base/random.h"
#include "model/model.h"
#include "tensor/tape.h"

namespace pronghorn::testing_support {

// The gradient of `tensor`, whose numbers in float64 are `at`: every stride-th of them is moved,
// and scalar() computed again. The tolerance is a share of the slope, or of 1 where that is
// smaller.
template <typename Scalar>
void expect_slopes(const std::string& name, const Tensor& tensor, std::vector<double>& at,
                   const Scalar& scalar, double tolerance, size_t stride = 1) {
  const auto gradient = tensor.grad().read();
  constexpr double kStep = 1e-5;  // the error of the difference is about its square
  for (size_t i = 0; i < at.size(); i += stride) {
    const double middle = at[i];
    at[i] = middle + kStep;
    const double up = scalar();
    at[i] = middle - kStep;
    const double slope = (up - scalar()) / (2 * kStep);
    at[i] = middle;
    EXPECT_NEAR(gradient[i], slope, tolerance * std::max(1.0, std::abs(slope))) << name << i;
  }
}

// All parameters of a model with gradients, moved by `length` in all: along the gradient, so that
// the difference is far above f32's rounding of the loss. loss(tape) is that of the model.
template <typename Loss>
void expect_slope_along_gradients(const Model& model, const Loss& loss, double length) {
  double squares = 0;
  for (const Parameter& parameter : model.parameters()) {
    ASSERT_TRUE(parameter.value.has_grad()) << parameter.name;
    for (const float g : parameter.value.grad().read()) squares += double{g} * double{g};
  }
  const double step = length / std::sqrt(squares);
  const auto move = [&](double by) {
    for (const Parameter& parameter : model.parameters()) {
      auto numbers = parameter.value.read();
      const auto gradient = parameter.value.grad().read();
      for (size_t i = 0; i < numbers.size(); ++i) {
        numbers[i] += static_cast<float>(by) * gradient[i];
      }
      parameter.value.write(numbers);
      parameter.value.bump_version();
    }
  };
  move(step);
  const double up = loss(nullptr);
  move(-2 * step);
  const double down = loss(nullptr);
  // The curvature over the step, and f32's rounding of the two losses.
  EXPECT_NEAR((up - down) / (2 * step), squares, 0.02 * squares);
}

// One parameter with a gradient, all of its numbers moved by as much, up or down as the seed has
// it. Returns the sum of the gradient's squares. loss(tape) is that of the model.
template <typename Loss>
double expect_slope_along_signs(const Parameter& parameter, uint64_t seed, const Loss& loss) {
  const Tensor gradient = parameter.value.grad();
  const std::vector<float> start(parameter.value.values().begin(), parameter.value.values().end());
  Random random(seed, "signs");
  double slope = 0, square = 0;
  std::vector<float> signs(start.size());
  for (size_t i = 0; i < signs.size(); ++i) {
    signs[i] = random.below(2) == 0 ? -1.0f : 1.0f;
    slope += double{signs[i]} * gradient.values()[i];
    square += double{gradient.values()[i]} * gradient.values()[i];
  }
  const auto at = [&](float step) {
    for (size_t i = 0; i < start.size(); ++i) {
      parameter.value.values()[i] = start[i] + step * signs[i];
    }
    parameter.value.bump_version();
    Tape unused;  // the same forms as in training
    return loss(&unused);
  };
  constexpr float kStep = 4e-4f;  // rounding of the losses weighs more than the fifth derivative
  const double difference =
      (8 * (at(kStep) - at(-kStep)) - (at(2 * kStep) - at(-2 * kStep))) / (12 * kStep);
  at(0);
  EXPECT_NEAR(difference, slope, 0.03 * std::sqrt(square) + 1e-3);
  return square;
}

}  // namespace pronghorn::testing_support
