// Mixtures of experts besides the laws (tests/laws/experts_case.cpp): ties, loads, losses, what a
// row does not depend on, and mistakes.
#include "ops/experts.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "ops/pointwise.h"
#include "support/errors.h"
#include "support/machine.h"

namespace pronghorn {
namespace {

Tensor random_tensor(Shape shape, uint64_t seed, double size = 1) {
  Random random(seed, "experts");
  Tensor tensor = Tensor::empty(std::move(shape));
  for (float& value : tensor.values()) value = static_cast<float>(random.uniform(-size, size));
  return tensor;
}

TEST(Router, TakesTheLowerIndexOfEqualScores) {
  const std::vector<float> logits = {1, 2, 2, 0, 2, 0, 0, 0, 0, 0, -1, 5, 5, 5, -1};
  const Tensor z = Tensor::from(logits, {3, 5});
  const std::vector<int32_t> expected = {1, 2, 0, 1, 1, 2};
  for (const bool sigmoid : {false, true}) {
    for (const bool corrected : {false, true}) {
      const Tensor correction = corrected ? Tensor::full({5}, 0.5f) : Tensor();
      const RouterOptions options = {.experts = 5, .top_k = 2, .sigmoid = sigmoid};
      EXPECT_EQ(route({}, z, correction, options).experts, expected);
    }
  }
}

TEST(Router, ChoosesByCorrectedScoresAndWeighsByPlainOnes) {
  const Tensor z = Tensor::from(std::vector<float>{2, 1, 0, -1}, {1, 4});
  const Tensor correction = Tensor::from(std::vector<float>{-1, 0, 0, 1}, {4});
  const Routing routing =
      route({}, z, correction, {.experts = 4, .top_k = 2, .sigmoid = true, .normalize = false});
  EXPECT_EQ(routing.experts, (std::vector<int32_t>{3, 1}));
  EXPECT_FLOAT_EQ(routing.weights.values()[0], 1 / (1 + std::exp(1.0f)));
  EXPECT_FLOAT_EQ(routing.weights.values()[1], 1 / (1 + std::exp(-1.0f)));
}

// All corrected scores are negative: an expert of a group that is omitted must not win with 0.
TEST(Router, LeavesGroupsOutWhateverTheSignOfScores) {
  const Tensor z = Tensor::from(std::vector<float>{0, 0, 1, 1, 0.5, 0.5}, {1, 6});
  const Tensor correction = Tensor::full({6}, -9);
  const Routing routing = route(
      {}, z, correction, {.experts = 6, .top_k = 2, .sigmoid = true, .groups = 3, .top_groups = 1});
  EXPECT_EQ(routing.experts, (std::vector<int32_t>{2, 3}));
}

// One NaN makes all of its row's scores NaN.
TEST(Router, GivesEachRowDistinctExpertsEvenOfNumbersThatAreNone) {
  const float nan = std::nanf("");
  const Tensor z = Tensor::from(std::vector<float>{nan, nan, nan, nan, 1, nan}, {2, 3});
  EXPECT_EQ(route({}, z, {}, {.experts = 3, .top_k = 2}).experts,
            (std::vector<int32_t>{0, 1, 0, 1}));
}

// Sorting would put them anywhere: they have no order.
TEST(Router, FindsTheBestGroupDespiteNumbersThatAreNone) {
  const float nan = std::nanf("");
  const Tensor z = Tensor::from(std::vector<float>{-3, nan, 3, 2, 1, 1, 1, 1}, {1, 8});
  const RouterOptions options = {
      .experts = 8, .top_k = 2, .sigmoid = true, .groups = 2, .top_groups = 1};
  EXPECT_EQ(route({}, z, {}, options).experts, (std::vector<int32_t>{2, 3}));
}

TEST(Router, CountsTheLoadForItsCorrectionInStepsOfTrainingOnly) {
  const Tensor z = random_tensor({10, 4}, 1);
  const Tensor correction = Tensor::zeros({4});
  z.set_requires_grad(true);
  correction.set_requires_grad(true);
  const RouterOptions options = {.experts = 4, .top_k = 2};
  for (const bool training : {false, true}) {
    Tape tape;
    Context context;
    context.tape = &tape;
    if (training) context.training_step = 3;
    const Routing first = route(context, z, correction, options);
    tape.run_backward();
    EXPECT_EQ(correction.has_grad(), training);
    if (!training) continue;
    std::vector<float> expected(4, -5.0f);
    for (const int32_t e : first.experts) expected[static_cast<size_t>(e)] += 1;
    const auto gradient = correction.grad().values();
    EXPECT_EQ(std::vector<float>(gradient.begin(), gradient.end()), expected);
  }
}

TEST(Experts, AreSortedAndFoundAgain) {
  const std::vector<int32_t> experts = {2, 0, 2, 3, 0, 2};  // of 3 rows
  const ExpertRows sorted = sort_by_expert(experts, 5, 2);
  EXPECT_EQ(sorted.begins, (std::vector<int64_t>{0, 2, 2, 5, 6, 6}));
  EXPECT_EQ(sorted.rows, (std::vector<int32_t>{0, 2, 0, 1, 2, 1}));
  EXPECT_EQ(sorted.places, (std::vector<int32_t>{2, 0, 3, 5, 1, 4}));
  EXPECT_EQ(sorted.counts(), (std::vector<int64_t>{2, 0, 3, 1, 0}));
}

struct Experts {
  std::vector<Weight> weights;

  explicit Experts(bool read_only) {
    for (uint64_t e = 0; e < 6; ++e) {
      weights.emplace_back(random_tensor({33, 40}, 10 + e));
      if (read_only) weights.back().freeze();
    }
  }
  // Each row given to expert `experts[row]`.
  Tensor run(const Tensor& x, const std::vector<int32_t>& experts, Precision precision) const {
    Context context;
    context.precision = precision;
    const ExpertRows sorted = sort_by_expert(experts, 6, 1);
    const Tensor y =
        grouped_linear(context, embedding(context, x, sorted.rows), weights, {}, sorted.begins);
    return combine_rows(context, y, Tensor::full({x.rows(), 1}, 1), sorted.places);
  }
};

// The law of batch: the same bits whichever other rows an expert gets, also where one gets all.
TEST(Experts, GiveARowTheSameBitsWhateverElseTheyAreGiven) {
  const Tensor x = random_tensor({50, 40}, 2);
  for (const std::string& set : cpu_instruction_sets()) {
    const testing_support::InstructionSet scope(set);
    for (const Precision precision : {Precision::f32, Precision::bf16}) {
      for (const bool read_only : {false, true}) {
        const Experts experts(read_only);
        std::vector<int32_t> alike(50, 3), spread(50);
        for (size_t i = 0; i < 50; ++i) spread[i] = static_cast<int32_t>(i * 7 % 6);
        spread[17] = 3;
        const Tensor one = experts.run(x.row_slice(17, 1), {3}, precision);
        const Tensor all = experts.run(x, alike, precision);
        const Tensor some = experts.run(x, spread, precision);
        for (int64_t c = 0; c < 33; ++c) {
          EXPECT_EQ(one.row(0)[c], all.row(17)[c]);
          EXPECT_EQ(one.row(0)[c], some.row(17)[c]);
        }
      }
    }
  }
}

TEST(Experts, ThatGetNoRowGetNoGradient) {
  const Experts experts(false);
  const Tensor x = random_tensor({4, 40}, 3);
  x.set_requires_grad(true);
  for (const Weight& weight : experts.weights) weight.trainable().set_requires_grad(true);
  Tape tape;
  Context context;
  context.tape = &tape;
  const Tensor y =
      grouped_linear(context, x, experts.weights, {}, std::vector<int64_t>{0, 0, 3, 3, 3, 4, 4});
  y.give_grad(Tensor::full(y.shape(), 1));
  tape.run_backward();
  EXPECT_TRUE(x.has_grad());
  for (size_t e = 0; e < 6; ++e) {
    EXPECT_EQ(experts.weights[e].trainable().has_grad(), e == 1 || e == 4) << e;
  }
}

// A loss [1] of logits against its naive form and that one's central differences.
void check_loss(const std::function<Tensor(const Context&, const Tensor&)>& loss,
                const std::function<double(const std::vector<double>&)>& naive, const Tensor& z) {
  z.set_requires_grad(true);
  Tape tape;
  Context context;
  context.tape = &tape;
  const Tensor value = loss(context, z);
  std::vector<double> numbers(z.values().begin(), z.values().end());
  EXPECT_NEAR(value.values()[0], naive(numbers), 2e-6 * naive(numbers));
  value.give_grad(Tensor::full({1}, 0.7f));
  tape.run_backward();
  for (size_t i = 0; i < numbers.size(); ++i) {
    constexpr double kStep = 1e-5;
    std::vector<double> more = numbers, less = numbers;
    more[i] += kStep;
    less[i] -= kStep;
    // f32 of a sum of some 20 terms.
    EXPECT_NEAR(z.grad().values()[i], 0.7 * (naive(more) - naive(less)) / (2 * kStep), 1e-6) << i;
  }
  z.clear_grad();
}

TEST(Router, LossesAreThoseOfThePapers) {
  constexpr int64_t kRows = 9, kExperts = 5;
  const Tensor z = random_tensor({kRows, kExperts}, 4, 3);
  for (const bool sigmoid : {false, true}) {
    const RouterOptions options = {.experts = kExperts, .top_k = 2, .sigmoid = sigmoid};
    const Routing routing = route({}, z, {}, options);
    const auto naive = [&](const std::vector<double>& logits) {
      double total = 0;
      for (size_t e = 0; e < kExperts; ++e) {
        double f = 0, p = 0;
        for (const int32_t chosen : routing.experts) f += chosen == static_cast<int32_t>(e);
        for (size_t row = 0; row < kRows; ++row) {
          double sum = 0;
          const auto s = [&](size_t i) {
            const double value = logits[row * kExperts + i];
            return sigmoid ? 1 / (1 + std::exp(-value)) : std::exp(value);
          };
          for (size_t i = 0; i < kExperts; ++i) sum += s(i);
          p += s(e) / sum;
        }
        total += f / static_cast<double>(2 * kRows) * p / static_cast<double>(kRows);
      }
      return total * kExperts;
    };
    check_loss(
        [&](const Context& context, const Tensor& logits) {
          return balance_loss(context, logits, routing, options);
        },
        naive, z);
  }
  check_loss(
      [](const Context& context, const Tensor& logits) { return router_z_loss(context, logits); },
      [](const std::vector<double>& logits) {
        double total = 0;
        for (size_t row = 0; row < kRows; ++row) {
          double sum = 0;
          for (size_t i = 0; i < kExperts; ++i) sum += std::exp(logits[row * kExperts + i]);
          total += std::log(sum) * std::log(sum);
        }
        return total / kRows;
      },
      z);
}

TEST(Router, BalancedChoicesCostOne) {
  const Tensor z = Tensor::zeros({6, 3});
  Routing routing;
  routing.experts = {0, 1, 2, 0, 1, 2};
  EXPECT_FLOAT_EQ(balance_loss({}, z, routing, {.experts = 3, .top_k = 1}).values()[0], 1);
}

TEST(Router, RefusesWhatDoesNotFit) {
  const Tensor z = Tensor::zeros({2, 6});
  EXPECT_THROW(route({}, z, {}, {.experts = 5, .top_k = 1}), Error);
  EXPECT_THROW(route({}, z, {}, {.experts = 6, .top_k = 7}), Error);
  EXPECT_THROW(route({}, z, {}, {.experts = 6, .top_k = 3, .groups = 3, .top_groups = 1}), Error);
  EXPECT_THROW(route({}, z, Tensor::zeros({5}), {.experts = 6, .top_k = 1}), Error);
  EXPECT_THROW(sort_by_expert(std::vector<int32_t>{6}, 6, 1), Error);
}

}  // namespace
}  // namespace pronghorn
