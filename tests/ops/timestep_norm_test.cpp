// The parts of timestep_norm() that are of single rows; the whole is in tests/laws.
#include "ops/timestep_norm.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/random.h"
#include "ops/operator_check.h"
#include "support/errors.h"
#include "support/steps.h"

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

// Means and variances of f32 that are moved on token by token are off by 1e-3 here.
TEST(TimestepNorm, DoesNotDriftInLongSequences) {
  constexpr int64_t kRows = 100'000, kWidth = 4, kHalf = 2;
  constexpr float kEpsilon = 1e-5f;
  const Tensor x = Tensor::empty({kRows, kWidth});
  Random random(1);
  // A mean that moves, so that means of many rows differ from those of the last.
  for (int64_t t = 0; t < kRows; ++t) {
    const double middle = 3 + 2 * std::sin(static_cast<double>(t) / 5000);
    for (int64_t c = 0; c < kWidth; ++c) {
      x.row(t)[c] = static_cast<float>(middle + random.uniform(-1, 1));
    }
  }
  const Tensor one = Tensor::full({kWidth}, 1), zero = Tensor::zeros({kWidth});
  auto layout = std::make_shared<StateLayout>();
  layout->layers = {{timestep_norm_journal(2), timestep_norm_journal(2)}};
  SequenceState state(layout);
  // A prompt and then steps, as texts are read.
  double sums[2] = {}, worst = 0;
  double squares[2] = {};  // of the numbers less 3, which is near their mean
  int64_t seen = 0;
  for (const int64_t length : {int64_t{70'000}, int64_t{29'990}, int64_t{10}}) {
    Batch batch = testing_support::batch_of({length});
    for (int32_t& position : batch.positions) position += static_cast<int32_t>(seen);
    batch.segments[0].state = &state;
    const Tensor y = timestep_norm({}, x.row_slice(seen, length), one, zero, 2, kEpsilon, batch,
                                   {JournalSlot{0, 0}, JournalSlot{0, 1}});
    state.advance(length);
    for (int64_t t = 0; t < length; ++t) {
      const float* row = x.row(seen + t);
      const auto count = static_cast<double>((seen + t + 1) * kHalf);
      for (int64_t g = 0; g < 2; ++g) {
        for (int64_t i = g * kHalf; i < (g + 1) * kHalf; ++i) {
          const double number = static_cast<double>(row[i]) - 3;
          sums[g] += number;
          squares[g] += number * number;
        }
        const double mean = sums[g] / count;
        const double deviation =
            std::sqrt(squares[g] / count - mean * mean + static_cast<double>(kEpsilon));
        for (int64_t i = g * kHalf; i < (g + 1) * kHalf; ++i) {
          const double expected = (static_cast<double>(row[i]) - 3 - mean) / deviation;
          // The first numbers may be close together, and their deviation small.
          if (seen + t >= 100) {
            worst = std::max(worst, std::abs(static_cast<double>(y.row(t)[i]) - expected));
          }
        }
      }
    }
    seen += length;
  }
  // Numbers of up to 6, whose roundings in f32 are 2.4e-7, over deviations of 0.5 and more, which
  // are right to some 1e-6 of themselves; results are up to 6.
  EXPECT_LT(worst, 1e-5);
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
