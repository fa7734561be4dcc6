// Experts that choose rows, besides the laws (tests/laws/experts_case.cpp): what each takes, what
// its threshold learns, and that in inference a row does not depend on the others.
#include <gmock/gmock.h>

#include <cmath>
#include <numeric>

#include "base/random.h"
#include "ops/experts.h"
#include "ops/pointwise.h"
#include "support/errors.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;

Tensor random_tensor(Shape shape, uint64_t seed, double size = 1) {
  Random random(seed, "choice");
  Tensor tensor = Tensor::empty(std::move(shape));
  for (float& value : tensor.values()) value = static_cast<float>(random.uniform(-size, size));
  return tensor;
}

// Scores of all rows in float64.
std::vector<std::vector<double>> scores_of(const Tensor& z, bool sigmoid) {
  std::vector<std::vector<double>> scores;
  for (int64_t row = 0; row < z.rows(); ++row) {
    std::vector<double>& own = scores.emplace_back();
    double sum = 0;
    for (int64_t e = 0; e < z.columns(); ++e) sum += std::exp(double{z.row(row)[e]});
    for (int64_t e = 0; e < z.columns(); ++e) {
      const double value = double{z.row(row)[e]};
      own.push_back(sigmoid ? 1 / (1 + std::exp(-value)) : std::exp(value) / sum);
    }
  }
  return scores;
}

// experts [rows, slots] as one list for each row.
std::vector<std::vector<int32_t>> lists(const std::vector<int32_t>& experts, int64_t rows) {
  const size_t slots = experts.size() / static_cast<size_t>(rows);
  std::vector<std::vector<int32_t>> all(static_cast<size_t>(rows));
  for (size_t i = 0; i < experts.size(); ++i) {
    if (experts[i] >= 0) all[i / slots].push_back(experts[i]);
  }
  return all;
}

TEST(ExpertChoice, EachExpertTakesItsHighestRows) {
  constexpr int64_t kRows = 23, kExperts = 5;
  const Tensor z = random_tensor({kRows, kExperts}, 1, 2);
  for (const bool sigmoid : {false, true}) {
    for (const int64_t k : {1, 2, 5}) {
      const RouterOptions options = {.experts = kExperts, .top_k = k, .sigmoid = sigmoid};
      const RowsOfExperts chosen = highest_rows(z, options);
      const auto scores = scores_of(z, sigmoid);
      const auto capacity = static_cast<size_t>(std::ceil(double(kRows * k) / kExperts));
      std::vector<std::vector<int32_t>> expected(kRows);
      for (size_t e = 0; e < kExperts; ++e) {
        std::vector<size_t> order(kRows);
        std::iota(order.begin(), order.end(), 0);
        std::ranges::sort(order, [&](size_t a, size_t b) { return scores[a][e] > scores[b][e]; });
        for (size_t i = 0; i < capacity; ++i) expected[order[i]].push_back(static_cast<int32_t>(e));
        EXPECT_NEAR(chosen.least[e], scores[order[capacity - 1]][e], 1e-6);
      }
      EXPECT_EQ(lists(chosen.experts, kRows), expected) << k << " of " << kExperts;
    }
  }
}

TEST(ExpertChoice, TakesTheEarlierRowOfEqualScoresAndLastWhatIsNoNumber) {
  const float nan = std::nanf("");
  const Tensor z = Tensor::from(std::vector<float>{nan, nan, 1, 0, 1, 0, 1, 0}, {4, 2});
  const RowsOfExperts chosen = highest_rows(z, {.experts = 2, .top_k = 1, .sigmoid = true});
  EXPECT_THAT(chosen.experts, ElementsAre(-1, -1, 0, 1, 0, 1, -1, -1));
}

TEST(ExpertChoice, ThresholdsLetPassWhatScoresAsMuch) {
  const Tensor z = Tensor::from(std::vector<float>{0, 1, -1, 2, -3, -3, 0, 0}, {4, 2});
  const Tensor threshold = Tensor::from(std::vector<float>{0.5f, 0.7f}, {2});
  const RouterOptions options = {.experts = 2, .top_k = 1, .sigmoid = true};
  EXPECT_THAT(experts_above(z, threshold, options), ElementsAre(0, 1, 1, -1, -1, -1, 0, -1));
  // One slot at least.
  EXPECT_THAT(experts_above(z.row_slice(2, 1), threshold, options), ElementsAre(-1));
}

TEST(ExpertChoice, ThresholdsFollowTheLeastScoreTakenInStepsOfTraining) {
  const Tensor z = random_tensor({10, 4}, 2);
  z.set_requires_grad(true);
  const Tensor threshold = Tensor::full({4}, 0.25f);
  threshold.set_requires_grad(true);
  const RouterOptions options = {.experts = 4, .top_k = 2, .normalize = false};
  for (const bool training : {false, true}) {
    Tape tape;
    Context context;
    context.tape = &tape;
    if (training) context.training_step = 0;
    route_by_experts(context, z, threshold, 3, options);
    route_by_experts(context, z, threshold, 1, options);
    tape.run_backward();
    EXPECT_EQ(threshold.has_grad(), training);
    if (!training) continue;
    const std::vector<double> least = highest_rows(z, options).least;
    for (size_t e = 0; e < 4; ++e) {
      EXPECT_NEAR(double{threshold.grad().values()[e]}, 4 * (0.25 - least[e]), 1e-6);
    }
  }
}

// The law of batch: experts and weights of a row are the same bits alone and among others.
TEST(ExpertChoice, InInferenceARowDoesNotDependOnTheOthers) {
  constexpr int64_t kRows = 40, kExperts = 6, kWidth = 17;
  const Tensor z = random_tensor({kRows, kExperts}, 3, 2), x = random_tensor({kRows, kWidth}, 4);
  const Tensor threshold =
      Tensor::from(std::vector<float>{0.1f, 0.2f, 0.3f, 0.4f, 0.25f, 0.9f}, {kExperts});
  std::vector<Weight> weights;
  for (uint64_t e = 0; e < kExperts; ++e) weights.emplace_back(random_tensor({9, kWidth}, 10 + e));
  const auto run = [&](const Tensor& logits, const Tensor& rows, const RouterOptions& options) {
    const Routing routing = route_by_experts({}, logits, threshold, 1, options);
    const ExpertRows sorted = sort_by_expert(routing.experts, kExperts, routing.weights.columns());
    const Tensor y =
        grouped_linear({}, embedding({}, rows, sorted.rows), weights, {}, sorted.begins);
    return combine_rows({}, y, routing.weights, sorted.places);
  };
  for (const bool normalize : {false, true}) {
    const RouterOptions options = {.experts = kExperts, .top_k = 2, .normalize = normalize};
    const Tensor all = run(z, x, options);
    int64_t without = 0, most = 0;
    for (int64_t row = 0; row < kRows; ++row) {
      const Tensor own = z.row_slice(row, 1);
      const Tensor one = run(own, x.row_slice(row, 1), options);
      for (int64_t c = 0; c < 9; ++c) EXPECT_EQ(one.row(0)[c], all.row(row)[c]) << row;
      const auto experts = lists(experts_above(own, threshold, options), 1)[0];
      most = std::max<int64_t>(most, std::ssize(experts));
      if (!experts.empty()) continue;
      ++without;
      for (int64_t c = 0; c < 9; ++c) EXPECT_EQ(all.row(row)[c], 0);
    }
    EXPECT_GT(without, 0);
    EXPECT_GT(most, 1);
  }
}

// Rows without an expert, and a batch in which no row has one, have a gradient of 0.
TEST(ExpertChoice, RowsWithoutExpertsGiveNothing) {
  const Tensor weights = Tensor::full({3, 2}, 0.5f), x = random_tensor({2, 5}, 5);
  x.set_requires_grad(true);
  weights.set_requires_grad(true);
  Tape tape;
  Context context;
  context.tape = &tape;
  const Tensor y = combine_rows(context, x, weights, std::vector<int32_t>{1, -1, -1, -1, 0, -1});
  y.give_grad(Tensor::full({3, 5}, 1));
  tape.run_backward();
  for (int64_t c = 0; c < 5; ++c) {
    EXPECT_EQ(y.row(0)[c], 0.5f * x.row(1)[c]);
    EXPECT_EQ(y.row(1)[c], 0);
    EXPECT_EQ(x.grad().row(0)[c], 0.5f);
  }
  const std::vector<float> sums = {std::accumulate(x.row(1), x.row(1) + 5, 0.0f), 0, 0, 0,
                                   std::accumulate(x.row(0), x.row(0) + 5, 0.0f), 0};
  for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(weights.grad().values()[i], sums[i], 1e-6f) << i;

  const ExpertRows none = sort_by_expert(std::vector<int32_t>{-1, -1, -1}, 4, 1);
  EXPECT_TRUE(none.rows.empty());
  const std::vector<Weight> matrices(4, Weight(random_tensor({5, 5}, 6)));
  const Tensor empty =
      grouped_linear(context, embedding(context, x, none.rows), matrices, {}, none.begins);
  const Tensor nothing = combine_rows(context, empty, Tensor::zeros({3, 1}), none.places);
  for (const float value : nothing.values()) EXPECT_EQ(value, 0);
}

TEST(ExpertChoice, RefusesWhatDoesNotFit) {
  const Tensor z = Tensor::zeros({2, 6});
  EXPECT_THROW(experts_above(z, Tensor::zeros({5}), {.experts = 6, .top_k = 1}), Error);
  EXPECT_THROW(highest_rows(z, {.experts = 5, .top_k = 1}), Error);
  EXPECT_THROW(highest_rows(z, {.experts = 6, .top_k = 7}), Error);
  EXPECT_THROW(expert_weights({}, z, std::vector<int32_t>{0, 1, 2}, {.experts = 6}), Error);
  EXPECT_THROW(sort_by_expert(std::vector<int32_t>{-2}, 6, 1), Error);
}

}  // namespace
}  // namespace pronghorn
