// The parts of timestep_norm() that are of single rows; the whole is in tests/laws.
#include "ops/timestep_norm.h"

#include <gmock/gmock.h>

#include "ops/operator_check.h"
#include "support/errors.h"

namespace pronghorn {
namespace {

using check::check_operator;
using check::OperatorCheck;
using check::Values;

constexpr int64_t kGroups = 3, kGroup = 11, kColumns = kGroups * kGroup;

size_t at(int64_t index) { return static_cast<size_t>(index); }

TEST(TimestepNorm, Moments) {
  OperatorCheck check;
  check.name = "group_moments";
  check.inputs = [](int64_t rows) { return std::vector<check::Input>{{{rows, kColumns}}}; };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    const auto [mean, variance] = group_moments(context, in[0], kGroup);
    return std::vector<Tensor>{mean, variance};
  };
  check.reference = [](const Values& in, int64_t rows) {
    Values out(2);
    for (int64_t g = 0; g < rows * kGroups; ++g) {
      double sum = 0, squares = 0;
      for (int64_t i = 0; i < kGroup; ++i) sum += in[0][at(g * kGroup + i)];
      for (int64_t i = 0; i < kGroup; ++i) {
        const double away = in[0][at(g * kGroup + i)] - sum / kGroup;
        squares += away * away;
      }
      out[0].push_back(sum / kGroup);
      out[1].push_back(squares / kGroup);
    }
    return out;
  };
  check_operator(check);
}

TEST(TimestepNorm, Norm) {
  constexpr float kEpsilon = 1e-3f;
  OperatorCheck check;
  check.name = "group_norm";
  check.inputs = [](int64_t rows) {
    return std::vector<check::Input>{{{rows, kColumns}},
                                     {{rows, kGroups}, -1, 1},
                                     {{rows, kGroups}, 0.2, 2},
                                     {{kColumns}},
                                     {{kColumns}}};
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{group_norm(context, in[0], in[1], in[2], in[3], in[4], kEpsilon)};
  };
  check.reference = [](const Values& in, int64_t rows) {
    std::vector<double> y;
    for (int64_t i = 0; i < rows * kColumns; ++i) {
      const size_t g = at(i / kGroup), column = at(i % kColumns);
      const double deviation = std::sqrt(in[2][g] + static_cast<double>(kEpsilon));
      y.push_back((in[0][at(i)] - in[1][g]) / deviation * in[3][column] + in[4][column]);
    }
    return Values{y};
  };
  check_operator(check);
}

TEST(TimestepNorm, RefusesShapesThatDoNotFit) {
  const Tensor x = Tensor::zeros({2, 6}), six = Tensor::zeros({6});
  EXPECT_THAT(testing_support::error_of([&] { group_moments({}, x, 4); }),
              testing::HasSubstr("6 columns in groups of 4"));
  EXPECT_THAT(testing_support::error_of([&] {
                group_norm({}, x, Tensor::zeros({2, 3}), Tensor::zeros({2, 2}), six, six, 1e-5f);
              }),
              testing::HasSubstr("variance [2, 2]"));
}

}  // namespace
}  // namespace pronghorn
