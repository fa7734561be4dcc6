// What is masked, and the bound: against sums over everything that can be masked, and against the
// orders in which tokens can be filled in.
#include "train/masked_text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "support/diffusion_models.h"
#include "support/model_runs.h"
#include "train/evaluate.h"

namespace pronghorn {
namespace {

using testing_support::diffusion_config;
using testing_support::kMaskToken;
using testing_support::random_tokens;

DiffusionConfig whole() { return {.mask_token = kMaskToken}; }
DiffusionConfig blocks(int64_t block) { return {.mask_token = kMaskToken, .block = block}; }

TEST(TrainingMask, IsAFunctionOfSeedAndExample) {
  const MaskWeights mask = training_mask(whole(), 3, 17, 8, 50);
  EXPECT_EQ(training_mask(whole(), 3, 17, 8, 50), mask);
  EXPECT_NE(training_mask(whole(), 4, 17, 8, 50), mask);
  EXPECT_NE(training_mask(whole(), 3, 18, 8, 50), mask);
}

// A token is masked with probability t and counts 1 / t times: once on average. The variance of
// that is E 1/t - 1, about ln 1000 - 1 = 6 with t from 0.001 to 1; 64,000 tokens of 4,000 draws
// of t, which are even within a step, leave a deviation of about 0.01.
TEST(TrainingMask, CountsEachTokenOnceOnAverage) {
  for (const DiffusionConfig& config : {whole(), blocks(4)}) {
    double sum = 0, masked = 0;
    for (uint64_t example = 0; example < 4000; ++example) {
      for (const float weight : training_mask(config, 1, example, 16, 16)) {
        sum += weight;
        masked += weight > 0 ? 1 : 0;
      }
    }
    EXPECT_NEAR(sum / 64000, 1, 0.06);
    EXPECT_NEAR(masked / 64000, 0.5, 0.01);
  }
}

// The shares of masked tokens of the examples of a step are spread evenly over (0, 1).
TEST(TrainingMask, SpreadsNoiseOverAStep) {
  constexpr int64_t kExamples = 10, kLength = 4000;
  for (uint64_t step = 0; step < 3; ++step) {
    std::vector<int> tenth(kExamples);
    for (uint64_t i = 0; i < kExamples; ++i) {
      for (const float weight :
           training_mask(whole(), 5, step * kExamples + i, kExamples, kLength)) {
        if (weight == 0) continue;
        const auto place = static_cast<size_t>(std::min(9.0, 10.0 / double{weight}));
        ++tenth[place];
        break;  // one t for the sequence
      }
    }
    for (const int count : tenth) EXPECT_EQ(count, 1);
  }
}

TEST(TrainingMask, BlocksHaveNoiseOfTheirOwn) {
  const MaskWeights mask = training_mask(blocks(16), 5, 0, 1, 160);
  std::map<float, int> weights;
  for (const float weight : mask) ++weights[weight];
  EXPECT_GE(weights.size(), 9u);  // 0, and one for each block that has masked tokens
  // Single tokens are always masked: that is the autoregressive loss.
  for (const float weight : training_mask(blocks(1), 5, 3, 4, 20)) EXPECT_EQ(weight, 1);
  DiffusionConfig shifted = whole();
  shifted.shift = true;
  for (uint64_t i = 0; i < 50; ++i) EXPECT_EQ(training_mask(shifted, 1, i, 4, 9)[0], 0);
}

// Any number of the m tokens, and any set of that many, is as likely as another.
TEST(BoundMask, DrawsEverySetAlike) {
  std::map<std::vector<bool>, double> seen;
  constexpr int kSamples = 30000;
  for (uint64_t sample = 0; sample < kSamples; ++sample) {
    const MaskWeights mask = bound_mask(whole(), sample, 4);
    EXPECT_EQ(mask[0], 0);
    std::vector<bool> set;
    int count = 0;
    for (size_t i = 1; i < 4; ++i) {
      set.push_back(mask[i] > 0);
      count += set.back() ? 1 : 0;
    }
    for (size_t i = 1; i < 4; ++i) EXPECT_TRUE(mask[i] == 0 || mask[i] == 3.0f / count);
    seen[set] += 1.0 / kSamples;
  }
  ASSERT_EQ(seen.size(), 7u);
  for (const auto& [set, share] : seen) {
    const auto count = std::count(set.begin(), set.end(), true);
    EXPECT_NEAR(share, count == 3 ? 1.0 / 3 : 1.0 / 9, 0.01);
  }
}

// -ln p of tokens in float64, from the model's own scores of a text with masked tokens. canvas: one
// text, or the text and its noisy copy. rows: of the canvas.
double nll(const Model& model, const Batch& canvas, const std::vector<int64_t>& rows,
           const std::vector<int32_t>& targets) {
  const std::vector<float> logits = testing_support::run(model, canvas, Precision::f32);
  double total = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const float* scores = logits.data() + rows[i] * 61;
    double sum = 0;
    for (int64_t c = 0; c < 61; ++c) sum += std::exp(double{scores[c]} - scores[targets[i]]);
    total += std::log(sum);
  }
  return total;
}

// -ln p of the tokens at `places`, all of which are masked.
double masked_nll(const Model& model, std::vector<int32_t> tokens,
                  const std::vector<int64_t>& places, const std::vector<int64_t>& scored) {
  std::vector<int32_t> targets;
  for (const int64_t place : scored) targets.push_back(tokens[static_cast<size_t>(place)]);
  for (const int64_t place : places) tokens[static_cast<size_t>(place)] = kMaskToken;
  Batch batch;
  add_fresh_segment(batch, tokens);
  std::vector<int64_t> rows = scored;
  if (model.config().diffusion->shift) {
    for (int64_t& row : rows) --row;
  }
  return nll(model, batch, rows, targets);
}

// The sum over all numbers of masked tokens and all sets of that many.
double exhaustive_bound(const Model& model, const std::vector<int32_t>& tokens) {
  const auto most = static_cast<int64_t>(tokens.size()) - 1;
  std::vector<double> sums(static_cast<size_t>(most) + 1), sets(sums.size());
  for (uint64_t set = 1; set < uint64_t{1} << most; ++set) {
    std::vector<int64_t> places;
    for (int64_t i = 0; i < most; ++i) {
      if ((set >> i & 1) != 0) places.push_back(i + 1);
    }
    const size_t count = places.size();
    sums[count] += masked_nll(model, tokens, places, places) / static_cast<double>(count);
    ++sets[count];
  }
  double bound = 0;
  for (size_t count = 1; count < sums.size(); ++count) bound += sums[count] / sets[count];
  return bound;
}

// The mean over all orders in which the tokens can be filled in one by one: the same number.
double mean_over_orders(const Model& model, const std::vector<int32_t>& tokens) {
  std::vector<int64_t> order(tokens.size() - 1);
  std::iota(order.begin(), order.end(), 1);
  double sum = 0, orders = 0;
  do {
    for (size_t i = 0; i < order.size(); ++i) {
      const std::vector<int64_t> masked(order.begin() + static_cast<int64_t>(i), order.end());
      sum += masked_nll(model, tokens, masked, {order[i]});
    }
    ++orders;
  } while (std::next_permutation(order.begin(), order.end()));
  return sum / orders;
}

TEST(Bound, OfATinyModelEqualsTheSumOverAllMasks) {
  for (const char* settings : {"", R"("shift": true)"}) {
    const Model model(diffusion_config("am", settings, 0.15), 3);
    const std::vector<int32_t> tokens = random_tokens(5, 60, 9);
    const double exact = exhaustive_bound(model, tokens);
    EXPECT_NEAR(mean_over_orders(model, tokens), exact, 1e-4);
    const TextScore score = evaluate_tokens(model, Precision::f32, tokens, 5, {}, DType::f32, 4000);
    EXPECT_EQ(score.tokens, 4);
    EXPECT_EQ(score.samples, 4000);
    // Losses of a token differ by about a nat between masks; 4000 samples of 4 tokens.
    EXPECT_NEAR(score.nll, exact, 0.01 * exact);
  }
}

// Windows share a token, so that each but the first of the text is predicted once.
TEST(Bound, PredictsEachTokenOnce) {
  const Model model(diffusion_config("a"), 3);
  const std::vector<int32_t> tokens = random_tokens(100, 60, 9);
  for (const int64_t window : {2, 7, 50, 99, 100, 200}) {
    EXPECT_EQ(evaluate_tokens(model, Precision::f32, tokens, window).tokens, 99) << window;
  }
}

// Blocks: the bound is the sum over blocks of that of a block, given those before it as they are.
TEST(Bound, OfBlocksEqualsTheSumOverTheMasksOfEach) {
  constexpr int64_t kBlock = 3;
  const Model model(diffusion_config("a", R"("block": 3)", 0.15), 3);
  const std::vector<int32_t> tokens = random_tokens(8, 60, 4);
  double exact = 0;
  SequenceState state = model.new_state();
  for (int64_t begin = 0; begin < 8; begin += kBlock) {
    const int64_t end = std::min<int64_t>(8, begin + kBlock), given = begin == 0 ? 1 : 0;
    const int64_t most = end - begin - given;
    const std::span<const int32_t> clean =
        std::span(tokens).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    std::vector<double> sums(static_cast<size_t>(most) + 1), sets(sums.size());
    for (uint64_t set = 1; set < uint64_t{1} << most; ++set) {
      std::vector<int32_t> noisy(clean.begin(), clean.end()), targets;
      std::vector<int64_t> rows;
      for (int64_t i = 0; i < most; ++i) {
        if ((set >> i & 1) == 0) continue;
        rows.push_back(i + given);
        targets.push_back(clean[static_cast<size_t>(rows.back())]);
        noisy[static_cast<size_t>(rows.back())] = kMaskToken;
      }
      SequenceState fork = state;
      sums[rows.size()] += nll(model, continue_sequence(fork, noisy), rows, targets) /
                           static_cast<double>(rows.size());
      ++sets[rows.size()];
    }
    for (size_t count = 1; count < sums.size(); ++count) exact += sums[count] / sets[count];
    model.forward({}, continue_sequence(state, clean));
  }
  const TextScore score = evaluate_tokens(model, Precision::f32, tokens, 8, {}, DType::f32, 4000);
  EXPECT_EQ(score.tokens, 7);
  EXPECT_NEAR(score.nll, exact, 0.01 * exact);
}

// Blocks of one token are an autoregressive model, whose bound is its likelihood.
TEST(Bound, OfBlocksOfOneTokenIsTheLikelihood) {
  const Model model(diffusion_config("a", R"("block": 1)"), 3);
  const std::vector<int32_t> tokens = random_tokens(12, 60, 4);
  double exact = 0;
  SequenceState state = model.new_state();
  for (size_t i = 0; i < tokens.size(); ++i) {
    SequenceState fork = state;
    const std::vector<int32_t> mask = {kMaskToken};
    if (i > 0) exact += nll(model, continue_sequence(fork, mask), {0}, {tokens[i]});
    model.forward({}, continue_sequence(state, std::span(tokens).subspan(i, 1)));
  }
  const TextScore score = evaluate_tokens(model, Precision::f32, tokens, 12, {}, DType::f32, 1);
  EXPECT_NEAR(score.nll, exact, 1e-4 * exact);
}

}  // namespace
}  // namespace pronghorn
