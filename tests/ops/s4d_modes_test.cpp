#include "ops/s4d_modes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <complex>

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
