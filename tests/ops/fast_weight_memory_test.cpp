// What fast-weight memories come down to in special cases, and what they refuse.
#include "ops/fast_weight_memory.h"

#include <gtest/gtest.h>

#include <cmath>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "laws/outer_product_state_reference.h"
#include "ops/outer_product_state.h"

namespace pronghorn {
namespace {

constexpr int64_t kHeads = 2, kDim = 12, kTokens = 75;

Tensor uniform(Random& random, Shape shape, double low, double high) {
  const Tensor tensor = Tensor::empty(std::move(shape));
  for (float& value : tensor.values()) value = static_cast<float>(random.uniform(low, high));
  return tensor;
}

std::vector<double> doubles(const Tensor& tensor) {
  return {tensor.values().begin(), tensor.values().end()};
}

Batch one_sequence(int64_t tokens) {
  Batch batch;
  for (int64_t t = 0; t < tokens; ++t) batch.positions.push_back(static_cast<int32_t>(t));
  batch.segments.push_back({nullptr, 0, tokens, Mask::causal, {}});
  return batch;
}

struct Problem {
  FastWeightMemoryInputs inputs;
  FastWeightMemoryOptions options;
};

// A linear memory from weights of zero, with unit-length keys.
Problem linear_memory(int64_t mini_batch, bool forgetting) {
  Random random(3, "memory");
  Problem problem;
  const double k = 1 / std::sqrt(static_cast<double>(kDim));
  problem.inputs.q = uniform(random, {kTokens, kHeads * kDim}, -1, 1);
  problem.inputs.k = uniform(random, {kTokens, kHeads * kDim}, -k, k);
  problem.inputs.v = uniform(random, {kTokens, kHeads * kDim}, -1, 1);
  problem.inputs.theta = uniform(random, {kTokens, kHeads}, 0.05, 0.5);
  if (forgetting) problem.inputs.alpha = uniform(random, {kTokens, kHeads}, 0, 0.3);
  problem.inputs.weights = {Tensor::zeros({kHeads, kDim, kDim})};
  problem.options.heads = kHeads;
  problem.options.head_dim = kDim;
  problem.options.mini_batch = mini_batch;
  problem.options.rule = TitansRule{.forgetting = forgetting};
  return problem;
}

// The delta rule in float64 with the gates that the memory's correspond to: it writes 2 theta v and
// erases 2 theta of what the key held. Gated DeltaNet reads the error from the decayed state, the
// memory from the weights before, so its strength is 2 theta / (1 - alpha), of values (1 - alpha)
// v.
std::vector<double> delta_rule(const Problem& problem) {
  OuterProductStateOptions options;
  options.value_heads = options.key_heads = kHeads;
  options.key_dim = options.value_dim = kDim;
  options.delta_rule = true;
  laws::OuterProductValues values;
  values.q = doubles(problem.inputs.q);
  values.k = doubles(problem.inputs.k);
  values.v = doubles(problem.inputs.v);
  values.beta = doubles(problem.inputs.theta);
  const Tensor& alphas = problem.inputs.alpha;
  for (size_t i = 0; i < values.beta.size(); ++i) {
    const double alpha = alphas.defined() ? static_cast<double>(alphas.values()[i]) : 0.0;
    values.log_decay.push_back(std::log(1 - alpha));
    values.beta[i] *= 2 / (1 - alpha);
    for (size_t c = 0; c < kDim; ++c) values.v[i * kDim + c] *= 1 - alpha;
  }
  std::vector<double> state;
  return laws::outer_product_reference(options, values, kTokens, state);
}

void expect_close(const Tensor& actual, const std::vector<double>& expected) {
  double largest = 0;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  // Sums of 75 steps in f32.
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(static_cast<double>(actual.values()[i]), expected[i], 2e-6 * largest) << i;
  }
}

TEST(FastWeightMemory, IsTheDeltaRuleWithoutMomentumAndForgetting) {
  const Problem problem = linear_memory(1, false);
  expect_close(
      fast_weight_memory({}, problem.inputs, problem.options, one_sequence(kTokens), {0, 0}),
      delta_rule(problem));
}

TEST(FastWeightMemory, IsGatedDeltaNetWithoutMomentum) {
  const Problem problem = linear_memory(1, true);
  expect_close(
      fast_weight_memory({}, problem.inputs, problem.options, one_sequence(kTokens), {0, 0}),
      delta_rule(problem));
}

// Errors that are online make the length of a mini-batch of one layer an execution detail.
TEST(FastWeightMemory, IsTheSameRuleInAnyMiniBatchWithOnlineErrors) {
  for (const bool forgetting : {false, true}) {
    for (const int64_t mini_batch : {1, 4, 16}) {
      SCOPED_TRACE(mini_batch);
      Problem problem = linear_memory(mini_batch, forgetting);
      std::get<TitansRule>(problem.options.rule).online_errors = true;
      expect_close(
          fast_weight_memory({}, problem.inputs, problem.options, one_sequence(kTokens), {0, 0}),
          delta_rule(problem));
    }
  }
}

// Steps of full strength at one key again and again: taken from the same weights they would
// overshoot 16 times over, and so would those of an input three long if they were not normalised.
TEST(FastWeightMemory, OnlineErrorsDoNotOvershoot) {
  Problem problem = linear_memory(16, false);
  std::get<TitansRule>(problem.options.rule).online_errors = true;
  for (const float length : {1.0f, 3.0f}) {
    SCOPED_TRACE(length);
    for (Tensor* tensor : {&problem.inputs.k, &problem.inputs.q}) {
      *tensor = Tensor::zeros({kTokens, kHeads * kDim});
      for (int64_t t = 0; t < kTokens; ++t) {
        for (int64_t h = 0; h < kHeads; ++h) tensor->row(t)[h * kDim] = length;
      }
    }
    problem.inputs.theta = Tensor::empty({kTokens, kHeads});
    for (float& theta : problem.inputs.theta.values()) theta = 0.5f;
    // 2 theta = 1: every token's value is recalled whole.
    expect_close(
        fast_weight_memory({}, problem.inputs, problem.options, one_sequence(kTokens), {0, 0}),
        doubles(problem.inputs.v));
  }
}

// In a mini-batch errors are read from the weights at its start: linear attention of the errors.
TEST(FastWeightMemory, IsLinearAttentionOfErrorsInAMiniBatch) {
  Problem problem = linear_memory(16, false);
  Random random(5, "weights");
  problem.inputs.weights = {uniform(random, {kHeads, kDim, kDim}, -1, 1)};
  constexpr int64_t kFew = 16;
  for (Tensor* input : {&problem.inputs.q, &problem.inputs.k, &problem.inputs.v}) {
    *input = input->row_slice(0, kFew);
  }
  problem.inputs.theta = problem.inputs.theta.row_slice(0, kFew);
  const std::vector<double> w = doubles(problem.inputs.weights[0]);
  std::vector<double> expected;
  for (int64_t t = 0; t < kFew; ++t) {
    for (int64_t h = 0; h < kHeads; ++h) {
      const auto read = [&](const Tensor& x, int64_t row, int64_t c) {
        double sum = 0;
        for (int64_t i = 0; i < kDim; ++i) {
          sum += static_cast<double>(x.row(row)[h * kDim + i]) *
                 w[static_cast<size_t>((h * kDim + i) * kDim + c)];
        }
        return sum;
      };
      for (int64_t c = 0; c < kDim; ++c) {
        double sum = read(problem.inputs.q, t, c);
        for (int64_t j = 0; j <= t; ++j) {
          double score = 0;
          for (int64_t i = 0; i < kDim; ++i) {
            score += static_cast<double>(problem.inputs.q.row(t)[h * kDim + i]) *
                     static_cast<double>(problem.inputs.k.row(j)[h * kDim + i]);
          }
          const double error = read(problem.inputs.k, j, c) -
                               static_cast<double>(problem.inputs.v.row(j)[h * kDim + c]);
          sum -= 2 * static_cast<double>(problem.inputs.theta.row(j)[h]) * score * error;
        }
        expected.push_back(sum);
      }
    }
  }
  expect_close(fast_weight_memory({}, problem.inputs, problem.options, one_sequence(kFew), {0, 0}),
               expected);
}

TEST(FastWeightMemory, RefusesWhatDoesNotFit) {
  const auto run = [](const Problem& problem) {
    return fast_weight_memory({}, problem.inputs, problem.options, one_sequence(kTokens), {0, 0});
  };
  Problem problem = linear_memory(3, false);
  EXPECT_THROW(run(problem), Error);  // mini-batch
  problem = linear_memory(16, true);
  problem.inputs.alpha = {};
  EXPECT_THROW(run(problem), Error);
  problem = linear_memory(16, false);
  problem.inputs.weights[0] = Tensor::zeros({kHeads, kDim, kDim + 1});
  EXPECT_THROW(run(problem), Error);
  problem = linear_memory(16, false);
  problem.options.depth = 2;
  EXPECT_THROW(run(problem), Error);  // no width between the layers
  problem = linear_memory(16, false);
  problem.options.rule = TttRule{};
  EXPECT_THROW(run(problem), Error);  // no norm
  problem = linear_memory(16, false);
  problem.inputs.token_idx = Tensor::zeros({16});
  EXPECT_THROW(run(problem), Error);  // Titans' rule has no weights of places
  problem = linear_memory(16, false);
  std::get<TitansRule>(problem.options.rule).read_interval = 24;
  EXPECT_THROW(run(problem), Error);
}

TEST(FastWeightMemory, SaysHowLargeItIs) {
  FastWeightMemoryOptions options;
  options.heads = 3;
  options.head_dim = 10;
  options.depth = 3;
  options.hidden_dim = 20;
  // Layers 10 -> 20 -> 20 -> 10: weights and momentum, or weights and biases.
  const int64_t weights = 10 * 20 + 20 * 20 + 20 * 10;
  const auto expect_size = [&](const MemoryRule& rule, int64_t size) {
    options.rule = rule;
    EXPECT_EQ(fast_weight_memory_size(options), size);
    EXPECT_EQ(fast_weight_memory_journal(options).anchor_size, size);
  };
  expect_size(TitansRule{.momentum = true}, 3 * 2 * weights);
  expect_size(TitansRule{.forgetting = true}, 3 * weights);
  expect_size(TttRule{}, 3 * (weights + 20 + 20 + 10));
}

}  // namespace
}  // namespace pronghorn
