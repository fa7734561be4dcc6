#include "ops/ternary.h"

#include <gtest/gtest.h>

#include "ops/operator_check.h"

namespace pronghorn {
namespace {

using Rounding = Tensor (*)(const Context&, const Tensor&);

// Results against the definition in float64, and the gradient passed on as it is.
void check_rounding(
    Rounding rounding,
    const std::function<double(std::span<const double> all, std::span<const double> row)>& scale,
    double low, double high) {
  constexpr int64_t kRows = 7, kColumns = 37;
  const std::vector<double> values = check::draw({{{kRows, kColumns}, -3, 2}}, 4).front();
  for (const std::string& set : cpu_instruction_sets()) {
    SCOPED_TRACE(set);
    set_cpu_instruction_set(set);
    for (const bool strided : {false, true}) {
      Tensor x = check::tensor_of(values, {kRows, kColumns}), base = x;
      if (strided) {
        base = Tensor::zeros({kRows, kColumns + 3});
        base.column_slice(2, kColumns).copy_from(x);
        x = base.column_slice(2, kColumns);
      }
      base.set_requires_grad(true);
      Tape tape;
      const Tensor y = rounding({&tape}, x);
      const std::vector<double> result = check::flatten(y);
      for (int64_t row = 0; row < kRows; ++row) {
        const auto first = static_cast<size_t>(row * kColumns);
        const double s = scale(values, std::span(values).subspan(first, kColumns));
        for (size_t c = first; c < first + kColumns; ++c) {
          const double steps = values[c] * s;
          // Where two programs may round to different sides, f32 does not decide.
          if (std::abs(steps - std::floor(steps) - 0.5) < 1e-4) continue;
          EXPECT_NEAR(result[c], std::clamp(std::nearbyint(steps), low, high) / s, 1e-6);
        }
      }
      y.give_grad(Tensor::full({kRows, kColumns}, 0.75f));
      tape.run_backward();
      for (const double gradient : check::flatten(x.grad())) EXPECT_EQ(gradient, 0.75);
    }
    const Tensor zeros = Tensor::zeros({2, 5});
    for (const double number : check::flatten(rounding({}, zeros))) EXPECT_EQ(number, 0);
  }
}

TEST(Ternary, RowsInEightBits) {
  check_rounding(
      round_rows,
      [](std::span<const double>, std::span<const double> row) {
        double largest = 0;
        for (const double number : row) largest = std::max(largest, std::abs(number));
        return 127 / largest;
      },
      -128, 127);
}

TEST(Ternary, MatricesInThreeNumbers) {
  check_rounding(
      round_ternary,
      [](std::span<const double> all, std::span<const double>) {
        double sum = 0;
        for (const double number : all) sum += std::abs(number);
        return static_cast<double>(all.size()) / sum;
      },
      -1, 1);
}

}  // namespace
}  // namespace pronghorn
