#include "ops/gates.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "operator_check.h"

namespace pronghorn {
namespace {

using check::check_operator;
using check::Input;
using check::OperatorCheck;
using check::Values;
using Row = std::vector<double>;

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

TEST(Gates, AppendOnes) {
  constexpr int64_t kGroup = 11;
  OperatorCheck check;
  check.name = "append_ones";
  check.inputs = [](int64_t rows) { return std::vector<Input>{{{rows, 3 * kGroup}}}; };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{append_ones(context, in[0], kGroup)};
  };
  check.reference = [](const Values& in, int64_t) {
    Row y;
    for (size_t i = 0; i < in[0].size(); ++i) {
      y.push_back(in[0][i]);
      if (i % kGroup == kGroup - 1) y.push_back(1);
    }
    return Values{y};
  };
  check_operator(check);
}

TEST(Gates, DivideBySums) {
  constexpr size_t kGroup = 10;
  for (const float least : {0.75f, 1e-6f}) {
    OperatorCheck check;
    check.name = "divide_by_sums";
    // Sums of both signs, on either side of the least; far enough from 0 for differences.
    check.inputs = [least](int64_t rows) {
      return std::vector<Input>{{{rows, 2 * (kGroup + 1)}, least > 0.5f ? -2.0 : 0.5, 2}};
    };
    check.forward = [least](const Context& context, const std::vector<Tensor>& in) {
      return std::vector<Tensor>{divide_by_sums(context, in[0], kGroup, least)};
    };
    check.reference = [least](const Values& in, int64_t) {
      Row y;
      for (size_t first = 0; first < in[0].size(); first += kGroup + 1) {
        const double sum = std::max(std::abs(in[0][first + kGroup]), static_cast<double>(least));
        for (size_t i = 0; i < kGroup; ++i) y.push_back(in[0][first + i] / sum);
      }
      return Values{y};
    };
    check_operator(check);
  }
}

TEST(Gates, ScaleColumns) {
  constexpr int64_t kColumns = 21;
  OperatorCheck check;
  check.name = "scale_columns";
  check.inputs = [](int64_t rows) { return std::vector<Input>{{{rows, kColumns}}, {{kColumns}}}; };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{scale_columns(context, in[0], in[1])};
  };
  check.reference = [](const Values& in, int64_t) {
    Row y = in[0];
    for (size_t i = 0; i < y.size(); ++i) y[i] *= in[1][i % kColumns];
    return Values{y};
  };
  check_operator(check);
}

TEST(Gates, ScaleGroups) {
  constexpr int64_t kGroup = 19, kGroups = 3;
  OperatorCheck check;
  check.name = "scale_groups";
  check.inputs = [](int64_t rows) {
    return std::vector<Input>{{{rows, kGroups * kGroup}}, {{rows, kGroups}}};
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{scale_groups(context, in[0], in[1], kGroup)};
  };
  check.reference = [](const Values& in, int64_t) {
    Row y = in[0];
    for (size_t i = 0; i < y.size(); ++i) y[i] *= in[1][i / kGroup];
    return Values{y};
  };
  check_operator(check);
}

TEST(Gates, LowerBoundedGate) {
  constexpr int64_t kColumns = 19;
  OperatorCheck check;
  check.name = "lower_bounded_gate";
  check.inputs = [](int64_t rows) {
    return std::vector<Input>{{{rows, kColumns}, -5, 5}, {{kColumns}, 0.05, 0.95}};
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    const auto [log_decay, k] = lower_bounded_gate(context, in[0], in[1]);
    return std::vector<Tensor>{log_decay, k};
  };
  check.reference = [](const Values& in, int64_t) {
    Row log_decay, k;
    for (size_t i = 0; i < in[0].size(); ++i) {
      const double bound = in[1][i % kColumns];
      const double decay = bound + (1 - bound) * sigmoid_of(in[0][i]);
      log_decay.push_back(std::log(decay));
      k.push_back(1 - decay);
    }
    return Values{log_decay, k};
  };
  check_operator(check);
}

TEST(Gates, WithoutABoundADecayMayBeNearlyNothingOrOne) {
  const Tensor bound = Tensor::zeros({4});
  const std::vector<float> values = {-200, -30, 30, 200};
  const Tensor x = Tensor::from(values, {1, 4});
  for (const std::string& set : cpu_instruction_sets()) {
    SCOPED_TRACE(set);
    set_cpu_instruction_set(set);
    const auto [log_decay, k] = lower_bounded_gate({}, x, bound);
    EXPECT_TRUE(std::isfinite(log_decay.values()[0]));
    EXPECT_LT(log_decay.values()[0], -80);
    EXPECT_NEAR(log_decay.values()[1], -30, 1e-4);
    EXPECT_EQ(log_decay.values()[3], 0);
    EXPECT_EQ(k.values()[0], 1);
    // 1 - f itself, which the difference of two numbers near 1 would have lost.
    EXPECT_NEAR(k.values()[2] / std::exp(-30.0), 1, 1e-5);
  }
}

TEST(Gates, LargeSumsHaveGradients) {
  // The square of such a sum is more than f32 holds.
  const Tensor x = Tensor::from(std::vector<float>{1e25f, -2e25f, 4e25f}, {1, 3});
  x.set_requires_grad(true);
  for (const std::string& set : cpu_instruction_sets()) {
    SCOPED_TRACE(set);
    set_cpu_instruction_set(set);
    x.clear_grad();
    Tape tape;
    const Tensor y = divide_by_sums({&tape}, x, 2, 1);
    y.give_grad(Tensor::from(std::vector<float>{1e5f, 1e5f}, {1, 2}));
    tape.run_backward();
    EXPECT_NEAR(x.grad().values()[0] / (1e5 / 4e25), 1, 1e-6);
    EXPECT_NEAR(x.grad().values()[2] / (1e5 * 1e25 / 4e25 / 4e25), 1, 1e-6);
  }
}

TEST(Gates, NanIsNotHidden) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::string& set : cpu_instruction_sets()) {
    SCOPED_TRACE(set);
    set_cpu_instruction_set(set);
    const Tensor x = Tensor::full({1, 18}, nan);
    const auto [log_decay, k] = lower_bounded_gate({}, x, Tensor::zeros({18}));
    for (const Tensor& y : {log_decay, k, divide_by_sums({}, x, 17, 1)}) {
      for (const float value : y.values()) EXPECT_TRUE(std::isnan(value));
    }
  }
}

TEST(Gates, CumulativeSoftmax) {
  constexpr int64_t kRows = 5, kColumns = 7;
  for (const int64_t row : {int64_t{0}, int64_t{3}, kRows - 1}) {
    OperatorCheck check;
    check.name = "cumulative_softmax";
    check.inputs = [](int64_t) { return std::vector<Input>{{{kRows, kColumns}}}; };
    check.forward = [row](const Context& context, const std::vector<Tensor>& in) {
      return std::vector<Tensor>{cumulative_softmax(context, in[0], row)};
    };
    check.reference = [row](const Values& in, int64_t) {
      Row y(kColumns);
      for (size_t c = 0; c < y.size(); ++c) {
        double sum = 0, below = 0;
        for (size_t i = 0; i < kRows; ++i) {
          const double weight = std::exp(in[0][i * kColumns + c]);
          sum += weight;
          if (i >= 1 && static_cast<int64_t>(i) <= row) below += weight;
        }
        y[c] = below / sum;
      }
      return Values{y};
    };
    check_operator(check);
  }
}

TEST(Gates, RepeatEach) {
  OperatorCheck check;
  check.name = "repeat_each";
  check.inputs = [](int64_t) { return std::vector<Input>{{{6}}}; };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{repeat_each(context, in[0], 5)};
  };
  check.reference = [](const Values& in, int64_t) {
    Row y;
    for (const double value : in[0]) y.insert(y.end(), 5, value);
    return Values{y};
  };
  check_operator(check);
}

TEST(Gates, ShapesAreChecked) {
  const Tensor x = Tensor::zeros({2, 6}), five = Tensor::zeros({5});
  EXPECT_THROW(append_ones({}, x, 4), Error);
  EXPECT_THROW(divide_by_sums({}, x, 3, 1), Error);
  EXPECT_THROW(divide_by_sums({}, x, 2, 0), Error);
  EXPECT_THROW(scale_columns({}, x, five), Error);
  EXPECT_THROW(scale_groups({}, x, five, 2), Error);
  EXPECT_THROW(lower_bounded_gate({}, x, five), Error);
  EXPECT_THROW(cumulative_softmax({}, x, 2), Error);
}

}  // namespace
}  // namespace pronghorn
