// What the five laws (tests/laws) leave to the diagonal scans: bits that do not depend on cuts of
// any length, cases that are one another's, and errors.
#include "ops/diagonal_scan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <functional>
#include <memory>
#include <numbers>
#include <string>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "base/random.h"
#include "ops/pointwise.h"
#include "support/errors.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::batch_of;
using testing_support::error_of;

constexpr JournalSlot kSlot = {0, 0};

Tensor draw(Shape shape, double low, double high, uint64_t seed) {
  const Tensor tensor = Tensor::empty(std::move(shape));
  Random random(seed);
  for (float& value : tensor.values()) value = static_cast<float>(random.uniform(low, high));
  return tensor;
}

// Rows of one sequence in pieces: forward(first row, rows, batch) gives the results of a piece.
std::vector<float> in_pieces(const JournalShape& journal, std::span<const int64_t> pieces,
                             const std::function<Tensor(int64_t, int64_t, const Batch&)>& forward) {
  auto layout = std::make_shared<StateLayout>();
  layout->layers = {{journal}};
  SequenceState state(layout);
  std::vector<float> all;
  int64_t first = 0;
  for (const int64_t count : pieces) {
    Batch batch = batch_of({count});
    for (int32_t& position : batch.positions) position += static_cast<int32_t>(first);
    batch.segments[0].state = &state;
    const Tensor y = forward(first, count, batch);
    state.advance(count);
    all.insert(all.end(), y.values().begin(), y.values().end());
    first += count;
  }
  return all;
}

const std::vector<std::vector<int64_t>> kCuts = {{150}, {37, 113}, {1, 64, 1, 20, 64}};

TEST(DiagonalScan, HasTheSameBitsHoweverALongSequenceIsCut) {
  constexpr int64_t kWidth = 70;
  const Tensor x = draw({150, kWidth}, -1, 1, 1), log_a = draw({150, kWidth}, -1, 0, 2);
  std::vector<std::vector<float>> results;
  for (const auto& cut : kCuts) {
    results.push_back(in_pieces(diagonal_scan_journal(kWidth, false), cut,
                                [&](int64_t first, int64_t count, const Batch& batch) {
                                  return diagonal_scan({}, log_a.row_slice(first, count),
                                                       x.row_slice(first, count), batch, kSlot);
                                }));
  }
  EXPECT_EQ(results[1], results[0]);
  EXPECT_EQ(results[2], results[0]);
}

TEST(DiagonalSsm, HasTheSameBitsHoweverALongSequenceIsCut) {
  constexpr int64_t kWidth = 70, kModes = 5;
  const Tensor u = draw({150, kWidth}, -1, 1, 1), D = draw({kWidth}, -1, 1, 4);
  const Tensor poles = draw({2 * kModes, kWidth}, -0.7, 0.7, 2);
  const Tensor reads = draw({2 * kModes, kWidth}, -1, 1, 3);
  std::vector<std::vector<float>> results;
  for (const auto& cut : kCuts) {
    results.push_back(in_pieces(diagonal_ssm_journal(kWidth, kModes), cut,
                                [&](int64_t first, int64_t count, const Batch& batch) {
                                  return diagonal_ssm({}, u.row_slice(first, count), poles, reads,
                                                      D, batch, kSlot);
                                }));
  }
  EXPECT_EQ(results[1], results[0]);
  EXPECT_EQ(results[2], results[0]);
}

TEST(RunningSum, HasTheSameBitsHoweverALongSequenceIsCut) {
  constexpr int64_t kWidth = 70;
  const Tensor x = draw({150, kWidth}, -1, 1, 1);
  for (const float period : {0.0f, 3.0f}) {
    std::vector<std::vector<float>> results;
    for (const auto& cut : kCuts) {
      results.push_back(in_pieces(
          running_sum_journal(kWidth), cut, [&](int64_t first, int64_t count, const Batch& batch) {
            return running_sum({}, x.row_slice(first, count), period, batch, kSlot);
          }));
    }
    EXPECT_EQ(results[1], results[0]) << period;
    EXPECT_EQ(results[2], results[0]) << period;
  }
}

// Sums of one f32 number would be off by some 1e-4 of themselves: their roundings add up.
TEST(RunningSum, DoesNotDrift) {
  constexpr int64_t kWidth = 3, kRows = 100'000;
  const Tensor x = draw({kRows, kWidth}, 0.05, 0.15, 1);
  const std::string before = cpu_instruction_set();
  for (const std::string& set : cpu_instruction_sets()) {
    SCOPED_TRACE(set);
    set_cpu_instruction_set(set);
    const Tensor h = running_sum({}, x, 0, batch_of({kRows}), kSlot);
    std::vector<double> sums(kWidth);
    double worst = 0;
    for (int64_t t = 0; t < kRows; ++t) {
      for (int64_t c = 0; c < kWidth; ++c) {
        double& sum = sums[static_cast<size_t>(c)];
        sum += static_cast<double>(x.row(t)[c]);
        worst = std::max(worst, std::abs(static_cast<double>(h.row(t)[c]) - sum) / sum);
      }
    }
    // The f32 number next to the sum is within 2^-24 of it; twice that for sums half way between.
    EXPECT_LT(worst, 0x1p-23);
  }
  set_cpu_instruction_set(before);
}

TEST(DiagonalScan, WithAConstantDecayIsThatWithTheSameDecayForEveryToken) {
  constexpr int64_t kWidth = 37, kRows = 40;
  const Tensor x = draw({kRows, kWidth}, -1, 1, 1), log_a = draw({kWidth}, -1, 0, 2);
  const Tensor repeated = Tensor::empty({kRows, kWidth});
  for (int64_t t = 0; t < kRows; ++t) std::copy_n(log_a.data(), kWidth, repeated.row(t));
  const Batch batch = batch_of({25, 15});
  const Tensor one = diagonal_scan({}, log_a, x, batch, kSlot);
  const Tensor two = diagonal_scan({}, repeated, x, batch, kSlot);
  EXPECT_TRUE(std::ranges::equal(one.values(), two.values()));
}

// Megalodon's complex moving average (arXiv 2404.08801, section 3.1) is a case of it:
//   h_n,t = q_n h_n,t-1 + p_n x_t, q_n = (1 - sigmoid(alpha_n) sigmoid(delta_n)) e^(i n w)
//   y_t = Re sum_n gamma_n h_n,t / sqrt(N) + omega x_t,    p_n = sigmoid(alpha_n)
TEST(DiagonalSsm, ComputesComplexMovingAverages) {
  constexpr int64_t kWidth = 3, kRows = 100;
  constexpr int64_t kModes = 4;
  const auto sigmoid = [](double value) { return 1 / (1 + std::exp(-value)); };
  const Tensor x = draw({kRows, kWidth}, -1, 1, 1), omega = draw({kWidth}, -1, 1, 2);
  const Tensor alpha = draw({kWidth, kModes}, -1, 1, 3), delta = draw({kWidth, kModes}, -3, 0, 4);
  const Tensor theta = draw({kWidth}, -2, 2, 5), gamma = draw({kWidth, 2 * kModes}, -1, 1, 6);
  const Tensor poles = Tensor::empty({2 * kModes, kWidth}), reads = Tensor::empty(poles.shape());
  std::vector<double> expected(static_cast<size_t>(kRows * kWidth));
  for (int64_t c = 0; c < kWidth; ++c) {
    for (int64_t n = 0; n < kModes; ++n) {
      const double p = sigmoid(alpha.row(c)[n]);
      const double angle =
          static_cast<double>(n + 1) * sigmoid(theta.data()[c]) * 2 * std::numbers::pi / kModes;
      const std::complex<double> q = std::polar(1 - p * sigmoid(delta.row(c)[n]), angle);
      const std::complex<double> read(gamma.row(c)[2 * n], gamma.row(c)[2 * n + 1]);
      std::complex<double> h;
      for (int64_t t = 0; t < kRows; ++t) {
        h = q * h + p * static_cast<double>(x.row(t)[c]);
        expected[static_cast<size_t>(t * kWidth + c)] +=
            (read * h).real() / std::sqrt(static_cast<double>(kModes));
      }
      const std::complex<double> half = read * p / (2 * std::sqrt(static_cast<double>(kModes)));
      poles.row(2 * n)[c] = static_cast<float>(q.real());
      poles.row(2 * n + 1)[c] = static_cast<float>(q.imag());
      reads.row(2 * n)[c] = static_cast<float>(half.real());
      reads.row(2 * n + 1)[c] = static_cast<float>(half.imag());
    }
    for (int64_t t = 0; t < kRows; ++t) {
      expected[static_cast<size_t>(t * kWidth + c)] +=
          static_cast<double>(omega.data()[c]) * static_cast<double>(x.row(t)[c]);
    }
  }
  const Tensor y = diagonal_ssm({}, x, poles, reads, omega, batch_of({kRows}), kSlot);
  // Some dozens of roundings of f32, of values up to 2.
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(y.values()[i], expected[i], 1e-5) << i;
}

TEST(DiagonalScan, RefusesShapesThatDoNotFit) {
  const Batch batch = batch_of({4});
  const Tensor x = Tensor::zeros({4, 3});
  EXPECT_THAT(error_of([&] {
                diagonal_scan({}, Tensor::zeros({4, 2}), x, batch, kSlot);
              }),
              HasSubstr("log_a is [4, 2], not [4, 3]"));
  EXPECT_THAT(error_of([&] { diagonal_scan({}, Tensor::zeros({2}), x, batch, kSlot); }),
              HasSubstr("log_a is [2], not [1, 3]"));
  const Tensor poles = Tensor::zeros({4, 3}), D = Tensor::zeros({3});
  EXPECT_THAT(error_of([&] {
                diagonal_ssm({}, x, poles, Tensor::zeros({2, 3}), D, batch, kSlot);
              }),
              HasSubstr("reads is [2, 3], not [4, 3]"));
  EXPECT_THAT(error_of([&] {
                diagonal_ssm({}, Tensor::zeros({4, 2}), poles, poles, D, batch, kSlot);
              }),
              HasSubstr("u is [4, 2], not [4, 3]"));
}

TEST(RunningSum, SegmentsGoOnFromAnother) {
  constexpr int64_t kWidth = 70;
  const Tensor x = draw({32, kWidth}, -1, 1, 1);
  for (const float period : {0.0f, 3.0f}) {
    Batch forked = batch_of({20, 7, 5});
    forked.segments[1].after = forked.segments[2].after = 0;
    const Tensor h = running_sum({}, x, period, forked, kSlot);
    const Tensor first = running_sum({}, x.row_slice(0, 27), period, batch_of({27}), kSlot);
    const Tensor parts[] = {x.row_slice(0, 20), x.row_slice(27, 5)};
    const Tensor second =
        running_sum({}, concatenate_rows({}, parts), period, batch_of({25}), kSlot);
    for (int64_t c = 0; c < kWidth; ++c) {  // the same additions in the same order
      EXPECT_EQ(h.row(26)[c], first.row(26)[c]);
      EXPECT_EQ(h.row(31)[c], second.row(24)[c]);
    }
  }
}

}  // namespace
}  // namespace pronghorn
