#include "ops/subsample.h"

#include <gmock/gmock.h>

#include <numbers>

#include "base/error.h"
#include "ops/operator_check.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using check::check_operator;
using check::Input;
using check::OperatorCheck;
using check::Values;
using testing::ElementsAre;
using testing_support::batch_of;
using Row = std::vector<double>;

Tensor column(const std::vector<float>& values) {
  return Tensor::from(values, {static_cast<int64_t>(values.size()), 1});
}

// Fresh segments of the given lengths.
TEST(Subsample, InferenceKeepsScoresAboveZero) {
  const Batch batch = batch_of({4, 0, 3});
  const RowSelection selection = select_positive(column({0.1f, -1, 0, 2, -0.1f, 1e-9f, 3}), batch);
  EXPECT_THAT(selection.rows, ElementsAre(0, 3, 5, 6));
  EXPECT_THAT(selection.counts, ElementsAre(2, 0, 2));
  EXPECT_TRUE(selection.penalties.empty());
  const Batch inner = selected_batch(batch, selection);
  EXPECT_THAT(inner.positions, ElementsAre(0, 3, 1, 2));
  EXPECT_EQ(inner.segments[1].length, 0);
  EXPECT_EQ(inner.segments[2].first_row, 2);
}

TEST(Subsample, TrainingKeepsTheHighestOfEachSegment) {
  // Ranks of the first segment: 4 (0.9), 1 (0.8), 0 (0.5), 3 (0.5), 2 (-1); of the second: 5, 6.
  const Batch batch = batch_of({5, 2});
  const Tensor scores = column({0.5f, 0.8f, -1, 0.5f, 0.9f, 0, -3});
  const RowSelection plain = select_highest(scores, batch, 0.6, false);
  EXPECT_THAT(plain.counts, ElementsAre(3, 2));  // ceil(0.6 * 5), ceil(0.6 * 2)
  EXPECT_THAT(plain.rows, ElementsAre(0, 1, 4, 5, 6));
  // Rank 0 (row 4) is paired with rank 3 (row 3), rank 1 (row 1) with rank 4 (row 2).
  EXPECT_THAT(plain.penalties, ElementsAre(-1, 2, 3, -1, -1));
  const RowSelection reversed = select_highest(scores, batch, 0.6, true);
  EXPECT_EQ(reversed.rows, plain.rows);
  // Rank 0 with rank 5 (none), rank 1 with rank 4 (row 2), rank 2 (row 0) with rank 3 (row 3).
  EXPECT_THAT(reversed.penalties, ElementsAre(3, 2, -1, -1, -1));
}

TEST(Subsample, CountsAreRoundedUpButNotByRoundingErrors) {
  const auto kept = [](int64_t length, double keep) {
    const Tensor scores = Tensor::zeros({length, 1});
    return select_highest(scores, batch_of({length}), keep, false).counts[0];
  };
  EXPECT_EQ(kept(100, 0.64), 64);
  EXPECT_EQ(kept(101, 0.64), 65);
  EXPECT_EQ(kept(4096, 0.64), 2622);  // 2621.44
  EXPECT_EQ(kept(7, 1), 7);
  EXPECT_EQ(kept(1, 0.01), 1);
}

TEST(Subsample, TreesKeepTheNearestSelectedAncestor) {
  // 0 - 1 - 2 - 4 and 0 - 3; nodes 1 and 3 are omitted.
  SequenceState state;
  Batch batch;
  batch.positions = {7, 8, 9, 8, 10};
  batch.segments.push_back({&state, 0, 5, Mask::causal, {-1, 0, 1, 0, 2}});
  const Batch inner = selected_batch(batch, select_positive(column({1, -1, 1, -1, 1}), batch));
  EXPECT_THAT(inner.segments[0].parents, ElementsAre(-1, 0, 1));
  EXPECT_THAT(inner.positions, ElementsAre(7, 9, 10));
  const Batch rootless = selected_batch(batch, select_positive(column({-1, -1, 1, 1, -1}), batch));
  EXPECT_THAT(rootless.segments[0].parents, ElementsAre(-1, -1));
}

TEST(Subsample, PenalisedWeights) {
  const Batch batch = batch_of({6});
  // Kept: rows 0 (1.5 -> 1), 2 (0.6), 4 (0.4); omitted: 1 (0.3), 3 (-2 -> 0), 5 (-0.1 -> 0).
  const Tensor scores = column({1.5f, 0.3f, 0.6f, -2, 0.4f, -0.1f});
  scores.set_requires_grad(true);
  const RowSelection selection = select_highest(scores, batch, 0.5, false);
  Tape tape;
  const Tensor weights = selected_weights({&tape, Precision::f32}, scores, selection);
  EXPECT_THAT(weights.values(), ElementsAre(1 - 0.3f, 0.6f, 0.4f));
  weights.give_grad(column({1, 10, 100}));
  tape.run_backward();
  const Tensor gradient = scores.grad();
  EXPECT_THAT(gradient.values(), ElementsAre(0, -1, 10, 0, 100, 0));
}

TEST(Subsample, SelectionLoss) {
  const auto selected = [](int64_t rows) {
    RowSelection selection;
    for (int32_t row = 0; row < rows; row += 3) selection.rows.push_back(row);
    return selection;
  };
  OperatorCheck check;
  check.name = "selection_loss";
  check.inputs = [](int64_t rows) { return std::vector<Input>{{{rows, 1}, -4, 4}}; };
  check.forward = [=](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{selection_loss(context, in[0], selected(in[0].rows()))};
  };
  check.reference = [=](const Values& in, int64_t rows) {
    double sum = 0;
    for (size_t i = 0; i < in[0].size(); ++i) {
      const double p = 1 / (1 + std::exp(-in[0][i]));
      sum -= std::log(i % 3 == 0 ? p : 1 - p);
    }
    return Values{{sum / static_cast<double>(rows)}};
  };
  check_operator(check);
  // Far from 0 it is linear, and no infinity.
  const Tensor far = column({-1000, 1000, 1000});
  EXPECT_FLOAT_EQ(*selection_loss({}, far, {{0}, {1}, {}}).data(), 1000);
}

OperatorCheck upsample_check() {
  constexpr int64_t kColumns = 37;
  const auto selected = [](int64_t rows) {
    std::vector<int32_t> list;
    for (int32_t row = 1; row < rows; row += 2) list.push_back(row);
    return list;
  };
  OperatorCheck check;
  check.name = "upsample";
  check.inputs = [=](int64_t rows) {
    const auto count = static_cast<int64_t>(selected(rows).size());
    return std::vector<Input>{
        {{rows, kColumns}}, {{count, kColumns}}, {{count}, -1, 1}, {{kColumns}, 0, 1}};
  };
  check.forward = [=](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{
        upsample(context, in[0], in[1], in[2], in[3], selected(in[0].rows()))};
  };
  check.reference = [=](const Values& in, int64_t rows) {
    Row out = in[0];
    const std::vector<int32_t> list = selected(rows);
    for (size_t i = 0; i < list.size(); ++i) {
      for (size_t c = 0; c < kColumns; ++c) {
        const double x = in[0][static_cast<size_t>(list[i]) * kColumns + c];
        const double z = in[2][i] * in[1][i * kColumns + c] + (1 - in[2][i]) * x;
        out[static_cast<size_t>(list[i]) * kColumns + c] = x + (z - x) * in[3][c];
      }
    }
    return Values{out};
  };
  return check;
}

TEST(Subsample, Upsample) { check_operator(upsample_check()); }

TEST(Subsample, GatherRows) {
  OperatorCheck check;
  check.name = "gather_rows";
  const auto selected = [](int64_t rows) {
    std::vector<int32_t> list;
    for (int32_t row = 0; row < rows; row += 1 + row % 3) list.push_back(row);
    return list;
  };
  check.inputs = [](int64_t rows) { return std::vector<Input>{{{rows, 19}}}; };
  check.forward = [=](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{gather_rows(context, in[0], selected(in[0].rows()))};
  };
  check.reference = [=](const Values& in, int64_t rows) {
    Row out;
    for (const int32_t row : selected(rows)) {
      const auto begin = in[0].begin() + row * 19;
      out.insert(out.end(), begin, begin + 19);
    }
    return Values{out};
  };
  check_operator(check);
}

TEST(Subsample, LimitLetsGradientsLeadBack) {
  const Tensor x = Tensor::from(std::vector<float>{0.1f, 0.1f, 0.5f, 1.5f, 1.5f}, {5});
  x.set_requires_grad(true);
  Tape tape;
  const Tensor y = limit({&tape, Precision::f32}, x, 0.2f, 1);
  EXPECT_THAT(y.values(), ElementsAre(0.2f, 0.2f, 0.5f, 1, 1));
  // Descent goes against the gradient.
  y.give_grad(Tensor::from(std::vector<float>{1, -1, 3, 1, -1}, {5}));
  tape.run_backward();
  EXPECT_THAT(x.grad().values(), ElementsAre(0, -1, 3, 1, 0));
}

// The loss of the balancer in float64, from its definition.
double balance_loss(const Row& scores, double least_m, double most_m, double least_rms,
                    double most_rms) {
  double sum = 0, squares = 0;
  for (const double s : scores) {
    sum += s;
    squares += s * s;
  }
  const auto count = static_cast<double>(scores.size());
  const double mean = sum / count, rms = std::sqrt(squares / count);
  const double m = mean / std::sqrt(squares / count - mean * mean);
  return std::abs(m - std::clamp(m, least_m, most_m)) +
         std::abs(std::log(std::clamp(rms, least_rms, most_rms) / rms));
}

TEST(Balancer, GradientIsThatOfTheFormula) {
  // Normal quantiles: a share q of positive scores means m = z(q), with z(0.59) = 0.227545 and
  // z(0.69) = 0.495850; rms of a normal distribution is sqrt(pi / 2) times the mean of |s|.
  constexpr double kLeast = 0.227544976641149, kMost = 0.495850347347453;
  const double of_magnitude = std::sqrt(std::numbers::pi / 2);
  BalanceBounds bounds;
  bounds.least_share = 0.59;
  bounds.most_share = 0.69;
  struct Case {
    double mean, spread;
  };
  // Too few and small, too many and large, within all bounds, few only, small only.
  for (const Case& c : {Case{-0.3, 0.4}, Case{9, 6}, Case{0.9, 2.4}, Case{-1, 2}, Case{0.2, 0.5}}) {
    Random random(5, "balancer");
    std::vector<float> scores;
    for (int i = 0; i < 200; ++i) {
      scores.push_back(static_cast<float>(c.mean + c.spread * random.normal()));
    }
    const Row exact(scores.begin(), scores.end());
    const auto loss = [&](const Row& at) {
      return balance_loss(at, kLeast, kMost, of_magnitude * bounds.least_magnitude,
                          of_magnitude * bounds.most_magnitude);
    };
    Row numeric;
    double squares = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      constexpr double kStep = 1e-5;
      Row up = exact, down = exact;
      up[i] += kStep;
      down[i] -= kStep;
      numeric.push_back((loss(up) - loss(down)) / (2 * kStep));
      squares += numeric.back() * numeric.back();
    }
    const double rms = std::sqrt(squares / 200);
    const std::vector<float> actual = balance_gradient(scores, bounds);
    for (size_t i = 0; i < exact.size(); ++i) {
      const double expected = rms < 1e-12 ? 0 : numeric[i] * bounds.gradient_scale / rms;
      // Differences of step 1e-5 in float64 err by some 1e-6 of the gradient.
      EXPECT_NEAR(double{actual[i]}, expected, 1e-5 * bounds.gradient_scale)
          << c.mean << " " << c.spread << ", score " << i;
    }
  }
}

TEST(Balancer, PushesInProportionToTheIncomingGradient) {
  BalanceBounds bounds;
  bounds.least_share = 0.9;  // of these scores half are positive
  const Tensor scores = column({-2, -1, 1, 2});
  scores.set_requires_grad(true);
  Tape tape;
  const Tensor balanced = balance({&tape, Precision::f32}, scores, bounds);
  EXPECT_THAT(balanced.values(), ElementsAre(-2, -1, 1, 2));
  const std::vector<float> incoming = {1, -2, 0, 3};
  balanced.give_grad(column(incoming));
  tape.run_backward();
  const std::vector<float> push = balance_gradient(scores.values(), bounds);
  for (int64_t i = 0; i < 4; ++i) {
    const auto at = static_cast<size_t>(i);
    EXPECT_LT(push[at], 0) << "descent must raise the scores";
    EXPECT_FLOAT_EQ(*scores.grad().row(i), incoming[at] + std::abs(incoming[at]) * push[at]);
  }
}

TEST(Balancer, ExcessOfTheBiasIsCounted) {
  EXPECT_FLOAT_EQ(excess_bias(std::vector<float>{1, -1, 1, 1}, 0.75), 0);
  EXPECT_FLOAT_EQ(excess_bias(std::vector<float>{2, -2, 0, -2, 2}, 0.64),
                  static_cast<float>((0.4 - 0.64) * std::sqrt(3.2) / 0.37));
  // Of normal scores it is about right: a share of 0.75 is 0.674 deviations, one of 0.64 is 0.358.
  Random random(1, "excess");
  std::vector<float> scores;
  for (int i = 0; i < 20000; ++i) scores.push_back(static_cast<float>(0.674 + random.normal()));
  EXPECT_NEAR(excess_bias(scores, 0.64), 0.674 - 0.358, 0.06);
}

TEST(Balancer, BiasLearnsItsExcessAndScoresWhatIsNotCommonToThem) {
  const Tensor bias = Tensor::zeros({1});
  bias.set_requires_grad(true);
  const Tensor scores = column({3, 1, -1, -3, 8, 6});
  scores.set_requires_grad(true);
  const Tensor unused = column({-2, -3});  // whose gradient does not come back
  unused.set_requires_grad(true);
  Tape tape;
  const Context context{&tape, Precision::f32};
  const Tensor balanced = balance_share(context, scores, batch_of({4, 0, 2}), bias, 0.5);
  balance_share(context, unused, batch_of({2}), bias, 0.5);
  EXPECT_THAT(balanced.values(), ElementsAre(3, 1, -1, -3, 8, 6));
  balanced.give_grad(column({1, 2, 0, 5, -1, 3}));
  tape.run_backward();
  EXPECT_FLOAT_EQ(*bias.grad().data(), excess_bias(std::vector<float>{8, 6}, 0.5) +
                                           excess_bias(std::vector<float>{-2, -3}, 0.5));
  EXPECT_THAT(scores.grad().values(), ElementsAre(-1, 0, -2, 3, -2, 2));
  EXPECT_THAT(unused.grad().values(), ElementsAre(0, 0));
}

TEST(Balancer, CentreLearnsTheMeanAndPassesGradientsOn) {
  const Tensor x = Tensor::from(std::vector<float>{1, 2, 3, 4, 5, 6}, {3, 2});
  const Tensor shift = Tensor::from(std::vector<float>{10, -1}, {2});
  x.set_requires_grad(true);
  shift.set_requires_grad(true);
  Tape tape;
  const Tensor y = centre({&tape, Precision::f32}, x, batch_of({2, 0, 1}), shift);
  EXPECT_THAT(y.values(), ElementsAre(11, 1, 13, 3, 15, 5));
  y.give_grad(Tensor::from(std::vector<float>{1, 2, 3, 4, 5, 6}, {3, 2}));
  tape.run_backward();
  EXPECT_THAT(x.grad().values(), ElementsAre(1, 2, 3, 4, 5, 6));
  // Means of two segments, of rows 0 and 1 and of row 2.
  EXPECT_THAT(shift.grad().values(), ElementsAre(12 + 15, 2 + 5));
}

TEST(Balancer, WithoutATapeDoesNothing) {
  const Tensor scores = column({1, 2});
  EXPECT_EQ(balance({}, scores, {}).data(), scores.data());
  const Tensor bias = Tensor::zeros({1});
  EXPECT_EQ(balance_share({}, scores, batch_of({2}), bias, 0.5).data(), scores.data());
  EXPECT_FALSE(bias.has_grad());
}

TEST(Subsample, RefusesWhatDoesNotFit) {
  const Batch batch = batch_of({3});
  EXPECT_THROW(select_positive(column({1, 2}), batch), Error);
  EXPECT_THROW(select_highest(column({1, 2, 3}), batch, 0, false), Error);
  EXPECT_THROW(select_highest(column({1, 2, 3}), batch, 1.1, false), Error);
  EXPECT_THROW(gather_rows({}, Tensor::zeros({3, 2}), std::vector<int32_t>{3}), Error);
  EXPECT_THROW(selection_loss({}, column({1, 2, 3}), {{3}, {1}, {}}), Error);
  EXPECT_THROW(gather_rows({}, Tensor::zeros({3, 2}), std::vector<int32_t>{1, 1}), Error);
  EXPECT_THROW(upsample({}, Tensor::zeros({3, 2}), Tensor::zeros({2, 2}), Tensor::zeros({1, 1}),
                        Tensor::zeros({2}), std::vector<int32_t>{0}),
               Error);
}

}  // namespace
}  // namespace pronghorn
