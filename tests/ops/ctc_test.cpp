// CTC: the loss against sums over all alignments in float64, its gradient against central
// differences of these, and what the best path says.
#include "ops/ctc.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/edit_distance.h"
#include "base/random.h"
#include "support/errors.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing_support::batch_of;
using testing_support::error_of;
using Symbols = std::vector<int32_t>;

// What a choice at each row says: runs of the same are one, blanks are left out.
Symbols collapsed(const Symbols& path) {
  Symbols symbols;
  for (size_t i = 0; i < path.size(); ++i) {
    if (path[i] != 0 && (i == 0 || path[i] != path[i - 1])) symbols.push_back(path[i]);
  }
  return symbols;
}

// -ln of the sum over all paths that say `symbols`. scores [rows, vocabulary].
double naive_loss(const std::vector<double>& scores, size_t vocabulary, const Symbols& symbols) {
  const size_t rows = scores.size() / vocabulary;
  Symbols path(rows, 0);
  double total = 0;
  while (true) {
    if (collapsed(path) == symbols) {
      double product = 1;
      for (size_t row = 0; row < rows; ++row) {
        double sum = 0;
        for (size_t k = 0; k < vocabulary; ++k) sum += std::exp(scores[row * vocabulary + k]);
        product *= std::exp(scores[row * vocabulary + static_cast<size_t>(path[row])]) / sum;
      }
      total += product;
    }
    size_t row = 0;
    while (row < rows && ++path[row] == static_cast<int32_t>(vocabulary)) path[row++] = 0;
    if (row == rows) return -std::log(total);
  }
}

std::vector<float> random_scores(int64_t rows, int64_t vocabulary) {
  Random random(5, "scores");
  std::vector<float> scores;
  for (int64_t i = 0; i < rows * vocabulary; ++i) {
    scores.push_back(static_cast<float>(2 * random.normal()));
  }
  return scores;
}

TEST(Ctc, IsTheSumOverAllAlignments) {
  constexpr int64_t kVocabulary = 3;
  const std::vector<Symbols> all = {{1, 2}, {1, 1}, {}, {2}, {2, 1, 2}, {1, 1, 1}};
  const std::vector<int64_t> lengths = {4, 3, 3, 1, 3, 5};
  const Batch batch = batch_of(lengths);
  const std::vector<float> numbers = random_scores(batch.rows(), kVocabulary);
  const Tensor scores = Tensor::from(numbers, {batch.rows(), kVocabulary});
  scores.set_requires_grad(true);
  Tape tape;
  Context context;
  context.tape = &tape;
  constexpr double kScale = 0.25;
  const CrossEntropy loss = ctc_loss(context, scores, batch, all, kScale);
  tape.run_backward();
  EXPECT_EQ(loss.count, 11);
  const PooledVector<float> gradient = scores.grad().read();
  double expected = 0;
  for (size_t s = 0; s < all.size(); ++s) {
    const auto first = static_cast<size_t>(batch.segments[s].first_row * kVocabulary);
    std::vector<double> own(
        numbers.begin() + static_cast<int64_t>(first),
        numbers.begin() + static_cast<int64_t>(first) + lengths[s] * kVocabulary);
    expected += naive_loss(own, kVocabulary, all[s]);
    for (size_t i = 0; i < own.size(); ++i) {
      constexpr double kStep = 1e-5;
      const double value = own[i];
      own[i] = value + kStep;
      const double up = naive_loss(own, kVocabulary, all[s]);
      own[i] = value - kStep;
      const double down = naive_loss(own, kVocabulary, all[s]);
      own[i] = value;
      // Gradients of up to 1 in f32, and h^2 of the difference.
      EXPECT_NEAR(double{gradient[first + i]}, kScale * (up - down) / (2 * kStep), 1e-6)
          << "sequence " << s << ", " << i;
    }
  }
  EXPECT_NEAR(loss.nll, expected, 1e-9 * expected);
}

// Products of a thousand probabilities are below the smallest double.
TEST(Ctc, LongSequencesStayFinite) {
  constexpr int64_t kRows = 1200, kVocabulary = 5;
  const Tensor scores = Tensor::zeros({kRows, kVocabulary});
  scores.set_requires_grad(true);
  Tape tape;
  Context context;
  context.tape = &tape;
  const std::vector<Symbols> symbols = {Symbols(400, 2)};
  const CrossEntropy loss = ctc_loss(context, scores, batch_of({kRows}), symbols, 1);
  tape.run_backward();
  // Each path has 5^-1200, and there are no more than that many paths.
  EXPECT_GT(loss.nll, 0);
  EXPECT_LT(loss.nll, kRows * std::log(5));
  double sum = 0;
  for (const float g : scores.grad().read()) {
    ASSERT_TRUE(std::isfinite(g));
    sum += double{g};
  }
  // Softmax and shares of the alignments sum to 1 in each row.
  EXPECT_NEAR(sum, 0, 1e-3);
}

TEST(Ctc, TheBestPathSaysSymbols) {
  const auto said = [](const std::vector<int>& path) {
    std::vector<float> scores;
    for (const int best : path) {
      for (int k = 0; k < 4; ++k) scores.push_back(k == best ? 1.0f : 0.0f);
    }
    return ctc_greedy(scores, 4);
  };
  EXPECT_THAT(said({0, 1, 1, 0, 1, 2, 2, 3}), ElementsAre(1, 1, 2, 3));
  EXPECT_THAT(said({0, 0}), IsEmpty());
  EXPECT_THAT(ctc_greedy(std::vector<float>{2, 2, 1}, 3), IsEmpty());  // the first of equal ones
}

TEST(Ctc, CountsSymbolsThatTheBestPathGetsRight) {
  // Says 1, 2.
  const Tensor scores = Tensor::from(std::vector<float>{0, 5, 0, 0, 0, 5}, {2, 3});
  const auto correct = [&](const Symbols& symbols) {
    const std::vector<Symbols> all = {symbols};
    return ctc_loss({}, scores, batch_of({2}), all, 1).correct;
  };
  EXPECT_EQ(correct({1, 2}), 2);
  EXPECT_EQ(correct({2, 1}), 0);
  EXPECT_EQ(correct({2}), 0);  // one too many
  EXPECT_EQ(correct({1}), 0);
}

TEST(Ctc, RefusesWhatCannotBeSaid) {
  const Tensor scores = Tensor::zeros({3, 4});
  const auto refusal = [&](const Symbols& symbols) {
    const std::vector<Symbols> all = {symbols};
    return error_of([&] { ctc_loss({}, scores, batch_of({3}), all, 1); });
  };
  EXPECT_EQ(refusal({1, 1}), "no error");
  EXPECT_EQ(ctc_rows(Symbols{1, 1, 2, 2}), 6);
  EXPECT_THAT(refusal({1, 1, 2}), HasSubstr("which need 4"));
  EXPECT_THAT(refusal({4}), HasSubstr("symbol 4"));
  EXPECT_THAT(refusal({0}), HasSubstr("symbol 0"));
  const std::vector<Symbols> two(2);
  EXPECT_THAT(error_of([&] { ctc_loss({}, scores, batch_of({3}), two, 1); }), HasSubstr("2"));
}

TEST(EditDistance, CountsChanges) {
  EXPECT_EQ(edit_distance(Symbols{1, 2, 3}, Symbols{1, 3}), 1u);
  EXPECT_EQ(edit_distance(Symbols{}, Symbols{4, 4}), 2u);
  EXPECT_EQ(edit_distance(Symbols{1, 2}, Symbols{2, 1}), 2u);
}

}  // namespace
}  // namespace pronghorn
