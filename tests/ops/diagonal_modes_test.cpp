#include "ops/diagonal_modes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <numbers>

#include "ops/operator_check.h"
#include "support/errors.h"

namespace pronghorn {
namespace {

using check::Input;
using check::Values;
using Complex = std::complex<double>;

// arXiv 2206.11893, section 2.2, of one mode: {pole, factor of the input}.
std::pair<Complex, Complex> discretised(Complex A, double dt, bool bilinear) {
  if (bilinear) return {(1.0 + dt * A / 2.0) / (1.0 - dt * A / 2.0), dt / (1.0 - dt * A / 2.0)};
  return {std::exp(dt * A), (std::exp(dt * A) - 1.0) / A};
}

check::OperatorCheck modes(std::string name, bool bilinear) {
  constexpr int64_t kModes = 3;
  check::OperatorCheck operator_check;
  operator_check.name = std::move(name);
  operator_check.inputs = [=](int64_t channels) {
    return std::vector<Input>{{{channels}, -5, -1},
                              {{channels, kModes}, -2, 1},
                              {{channels, kModes}, -4, 12},
                              {{channels, kModes * 2}, -1, 1}};
  };
  operator_check.forward = [=](const Context& context, const std::vector<Tensor>& in) {
    const DiagonalModes out =
        s4d_modes(context, in[0], in[1], in[2], in[3],
                  bilinear ? Discretisation::bilinear : Discretisation::zero_order_hold);
    return std::vector<Tensor>{out.poles, out.reads};
  };
  operator_check.reference = [=](const Values& in, int64_t channels) {
    const auto width = static_cast<size_t>(channels), count = static_cast<size_t>(kModes);
    Values out(2, std::vector<double>(2 * count * width));
    for (size_t c = 0; c < width; ++c) {
      for (size_t n = 0; n < count; ++n) {
        const size_t i = c * count + n;
        const auto [pole, factor] =
            discretised({-std::exp(in[1][i]), in[2][i]}, std::exp(in[0][c]), bilinear);
        const Complex read = Complex(in[3][2 * i], in[3][2 * i + 1]) * factor;
        out[0][2 * n * width + c] = pole.real();
        out[0][(2 * n + 1) * width + c] = pole.imag();
        out[1][2 * n * width + c] = read.real();
        out[1][(2 * n + 1) * width + c] = read.imag();
      }
    }
    return out;
  };
  return operator_check;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Modes one after another as the reference of an operator gives them: mode(channel, n) is {pole,
// what is read}.
template <typename Mode>
Values laid_out(size_t channels, size_t count, const Mode& mode) {
  Values out(2, std::vector<double>(2 * count * channels));
  for (size_t c = 0; c < channels; ++c) {
    for (size_t n = 0; n < count; ++n) {
      const auto [pole, read] = mode(c, n);
      out[0][2 * n * channels + c] = pole.real();
      out[0][(2 * n + 1) * channels + c] = pole.imag();
      // diagonal_ssm() doubles what it reads.
      out[1][2 * n * channels + c] = read.real() / 2;
      out[1][(2 * n + 1) * channels + c] = read.imag() / 2;
    }
  }
  return out;
}

// arXiv 2209.10655, section 3.1, and 2404.08801, section 3.1.
TEST(AverageModes, EqualTheEquations) {
  constexpr int64_t kModes = 3;
  const double root = std::sqrt(3.0);
  check::OperatorCheck check;
  check.name = "damped_average_modes";
  check.inputs = [](int64_t channels) {
    return std::vector<Input>(4, Input{{channels, kModes}, -2, 2});
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    const DiagonalModes out = damped_average_modes(context, in[0], in[1], in[2], in[3]);
    return std::vector<Tensor>{out.poles, out.reads};
  };
  check.reference = [=](const Values& in, int64_t channels) {
    return laid_out(static_cast<size_t>(channels), kModes, [&](size_t c, size_t n) {
      const size_t i = c * kModes + n;
      const double p = sigmoid(in[0][i]);
      return std::pair<Complex, Complex>(1 - p * sigmoid(in[1][i]), p * in[2][i] * in[3][i] / root);
    });
  };
  check_operator(check);

  check.name = "complex_average_modes";
  check.inputs = [](int64_t channels) {
    return std::vector<Input>{{{channels, kModes}, -2, 2},
                              {{channels, kModes}, -2, 2},
                              {{channels}, -3, 3},
                              {{channels, 2 * kModes}, -1, 1}};
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    const DiagonalModes out = complex_average_modes(context, in[0], in[1], in[2], in[3]);
    return std::vector<Tensor>{out.poles, out.reads};
  };
  check.reference = [=](const Values& in, int64_t channels) {
    return laid_out(static_cast<size_t>(channels), kModes, [&](size_t c, size_t n) {
      const size_t i = c * kModes + n;
      const double p = sigmoid(in[0][i]), length = 1 - p * sigmoid(in[1][i]);
      const double angle =
          static_cast<double>(n + 1) * sigmoid(in[2][c]) * 2 * std::numbers::pi / 3;
      return std::pair<Complex, Complex>(length * Complex(std::cos(angle), std::sin(angle)),
                                         p * Complex(in[3][2 * i], in[3][2 * i + 1]) / root);
    });
  };
  check_operator(check);

  const Tensor two = Tensor::zeros({2, 3});
  EXPECT_THAT(testing_support::error_of([&] {
                damped_average_modes({}, two, two, two, Tensor::zeros({3, 3}));
              }),
              testing::HasSubstr("gamma [3, 3] do not fit"));
  EXPECT_THAT(testing_support::error_of([&] {
                complex_average_modes({}, two, two, Tensor::zeros({3}), Tensor::zeros({2, 6}));
              }),
              testing::HasSubstr("theta [3]"));
}

TEST(S4dModes, EqualTheEquations) {
  check::check_operator(modes("zero-order hold", false));
  check::check_operator(modes("bilinear", true));
}

TEST(S4dModes, RefusesShapesThatDoNotFit) {
  const Tensor A = Tensor::zeros({2, 3});
  EXPECT_THAT(
      testing_support::error_of([&] {
        s4d_modes({}, Tensor::zeros({2}), A, A, Tensor::zeros({2, 3}), Discretisation::bilinear);
      }),
      testing::HasSubstr("C [2, 3] do not fit"));
}

}  // namespace
}  // namespace pronghorn
