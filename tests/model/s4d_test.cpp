// How S4D's frequencies start (arXiv 2206.11893, section 3).
#include <gtest/gtest.h>

#include <numbers>

#include "model/model.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing_support::model_config;

// Those of channel 1 of a model whose layer has this `init`.
std::vector<float> frequencies(const std::string& init) {
  const Model model(model_config(R"("pattern": "s", "blocks": {"s": {"mixer": {"type": "s4d",
                                    "state": 8, "init": ")" +
                                 init + R"("}}})"),
                    1);
  for (const Parameter& parameter : model.parameters()) {
    if (!parameter.name.ends_with("A_imag")) continue;
    const float* row = parameter.value.row(1);
    return {row, row + parameter.value.columns()};
  }
  return {};
}

void expect_frequencies(const std::string& init, const std::vector<double>& expected) {
  const std::vector<float> actual = frequencies(init);
  ASSERT_EQ(actual.size(), expected.size()) << init;
  // f32 of a number that f64 has to 1e-12.
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_NEAR(actual[i] / std::max(expected[i], 1e-3), expected[i] / std::max(expected[i], 1e-3),
                1e-6)
        << init << " " << i;
  }
}

TEST(S4d, StartsWithTheFrequenciesOfThePaper) {
  const double pi = std::numbers::pi;
  expect_frequencies("lin", {0, pi, 2 * pi, 3 * pi});
  expect_frequencies("inv", {8 / pi * 7, 8 / pi * (8.0 / 3 - 1), 8 / pi * 0.6, 8 / pi / 7});
  // The eigenvalues of HiPPO-LegS + P P^T for N = 8, by NumPy.
  expect_frequencies(
      "legs", {0.42748871228586044, 1.9577941509028047, 5.354208515030872, 19.857410370970577});
}

}  // namespace
}  // namespace pronghorn
