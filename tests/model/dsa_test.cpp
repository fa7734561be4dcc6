// DeepSeek sparse attention: what its indexer learns from, and where it is latent attention.
#include <gtest/gtest.h>

#include <map>

#include "ops/cross_entropy.h"
#include "support/model_runs.h"
#include "support/steps.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing_support::bit_difference;
using testing_support::decode;
using testing_support::equal_steps;
using testing_support::model_config;
using testing_support::random_tokens;
using testing_support::relative_difference;

constexpr int64_t kTokens = 90;

std::string body(const std::string& type, const std::string& rest) {
  return R"("pattern": "2b", "blocks": {"b": {"mixer": {"type": ")" + type +
         R"(", "heads": 3, "head_dim": 8, "rope_dim": 4, "latent": 12, "query_rank": 14,
             "rope": {})" +
         rest + R"(}, "ffn": {"type": "swiglu", "size": 20}}})";
}

std::string sparse(int64_t top, int64_t dense_steps = 0) {
  return body("dsa", fmt::format(R"(, "top": {}, "index_heads": 2, "index_dim": 6,
                                    "dense_steps": {})",
                                 top, dense_steps));
}

bool is_of_indexer(const Parameter& parameter) {
  return parameter.name.find(".indexer.") != std::string::npos;
}

struct Learned {
  std::vector<float> hidden;
  std::map<std::string, std::vector<float>> gradients;
  double loss = 0;  // of the indexers
};

// One training step at `step`, with the model's loss, that of its indexers, or both.
Learned learn(const Model& model, int64_t step, bool of_model, bool of_indexer) {
  const auto tokens = random_tokens(kTokens, model.config().vocab_size, 1);
  const auto targets = random_tokens(kTokens, model.config().vocab_size, 2);
  Tape tape;
  Context context;
  context.tape = &tape;
  context.training_step = step;
  Learned result;
  ForwardObserver observer;
  if (of_indexer) {
    observer.on_loss = [&](const LayerLoss& loss) {
      EXPECT_EQ(loss.name, "indexer");
      result.loss += double{*loss.value.data()};
      loss.value.give_grad(Tensor::full({1}, 1));
    };
  }
  for (const Parameter& parameter : model.parameters()) parameter.value.clear_grad();
  const Tensor hidden = model.forward(context, fresh_segments(tokens, kTokens), observer);
  result.hidden.assign(hidden.values().begin(), hidden.values().end());
  if (of_model) model.cross_entropy(context, hidden, targets, 1.0 / kTokens, 0);
  tape.run_backward();
  for (const Parameter& parameter : model.parameters()) {
    if (!parameter.value.has_grad()) continue;
    const Tensor gradient = parameter.value.grad().clone();
    result.gradients[parameter.name] = {gradient.values().begin(), gradient.values().end()};
  }
  return result;
}

TEST(Dsa, IndexerAndModelLearnFromLossesOfTheirOwn) {
  const Model model(model_config(sparse(20)), 4);
  const Learned both = learn(model, 0, true, true), plain = learn(model, 0, true, false);
  EXPECT_GT(both.loss, 0.01);
  int64_t indexers = 0;
  for (const Parameter& parameter : model.parameters()) {
    if (is_of_indexer(parameter)) {
      ++indexers;
      EXPECT_FALSE(plain.gradients.contains(parameter.name)) << parameter.name;
      ASSERT_TRUE(both.gradients.contains(parameter.name)) << parameter.name;
      double size = 0;
      for (const float g : both.gradients.at(parameter.name)) size += std::abs(double{g});
      EXPECT_GT(size, 1e-6) << parameter.name;
    } else {
      EXPECT_EQ(
          bit_difference(both.gradients.at(parameter.name), plain.gradients.at(parameter.name)), "")
          << parameter.name;
    }
  }
  EXPECT_EQ(indexers, 2 * 5);
  for (const auto& [name, gradient] : learn(model, 0, false, true).gradients) {
    EXPECT_NE(name.find(".indexer."), std::string::npos) << name;
  }
}

TEST(Dsa, SeesAllInTheWarmUp) {
  const Model warm(model_config(sparse(20, 5)), 4), sparse_only(model_config(sparse(20)), 4);
  const Model dense(model_config(sparse(kTokens)), 4);
  const Learned all = learn(dense, 0, true, true), first = learn(warm, 4, true, true);
  // Tiles are the same, but rows that a list keeps from one are added up apart.
  EXPECT_LE(relative_difference(first.hidden, all.hidden), 1e-5);
  EXPECT_NEAR(first.loss, all.loss, 1e-5);
  const Learned later = learn(warm, 5, true, true), chosen = learn(sparse_only, 5, true, true);
  EXPECT_EQ(bit_difference(later.hidden, chosen.hidden), "");
  EXPECT_EQ(later.loss, chosen.loss);
  EXPECT_GT(relative_difference(later.hidden, all.hidden), 1e-3);
}

TEST(Dsa, IsLatentAttentionWhereItChoosesAll) {
  const Model dsa(model_config(sparse(kTokens)), 4), mla(model_config(body("mla", "")), 4);
  const auto tokens = random_tokens(kTokens, mla.config().vocab_size, 3);
  SequenceState sparse_state = dsa.new_state(), dense_state = mla.new_state();
  const auto actual = decode(dsa, sparse_state, tokens, equal_steps(kTokens, 16));
  const auto expected = decode(mla, dense_state, tokens, equal_steps(kTokens, 16));
  // The same sums in another order.
  EXPECT_LE(relative_difference(actual, expected), 1e-5);
}

// Longer pieces than steps too: single keys are gathered in every form.
TEST(Dsa, CutsChangeNoBit) {
  const Model model(model_config(sparse(20)), 4);
  const auto tokens = random_tokens(kTokens, model.config().vocab_size, 3);
  std::vector<float> expected;
  for (const std::vector<int64_t>& steps :
       {std::vector<int64_t>{kTokens}, {1, 40, 49}, {17, 3, 70}, {64, 26}}) {
    SequenceState state = model.new_state();
    const auto actual = decode(model, state, tokens, steps);
    if (expected.empty()) expected = actual;
    EXPECT_EQ(bit_difference(actual, expected), "") << fmt::format("{}", fmt::join(steps, " "));
  }
}

}  // namespace
}  // namespace pronghorn
