// Models that see both ways: what their rows see, mixers in both directions, blocks, gradients, and
// what such models refuse.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/diffusion_models.h"
#include "support/errors.h"
#include "support/model_runs.h"
#include "support/slopes.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::diffusion_config;
using testing_support::error_of;
using testing_support::expect_slope_along_signs;
using testing_support::kMaskToken;
using testing_support::model_config;
using testing_support::random_tokens;
using testing_support::relative_difference;
using testing_support::run;

// f32 sums in another order.
constexpr double kTolerance = 2e-5;

Batch fresh(std::span<const int32_t> tokens) {
  Batch batch;
  add_fresh_segment(batch, tokens);
  return batch;
}

std::vector<float> row_of(const std::vector<float>& logits, int64_t row) {
  return {logits.begin() + row * 61, logits.begin() + (row + 1) * 61};
}

TEST(DiffusionModel, ConfigurationsAreWrittenAsTheyAreRead) {
  const ModelConfig config = diffusion_config("am", R"("shared_directions": true)");
  ASSERT_TRUE(config.diffusion);
  EXPECT_EQ(config.diffusion->mask_token, kMaskToken);
  EXPECT_EQ(config.diffusion->block, 0);
  const nlohmann::json written = write_pronghorn_config(config);
  EXPECT_EQ(written.at("diffusion").at("shared_directions"), true);
  EXPECT_EQ(write_pronghorn_config(read_pronghorn_config({written, "again"})), written);
  EXPECT_FALSE(write_pronghorn_config(testing_support::tiny_config()).contains("diffusion"));
}

TEST(DiffusionModel, AMaskTokenFollowsTheVocabulary) {
  nlohmann::json json = testing_support::tiny_json("a");
  json["diffusion"] = {{"block", 4}};
  ModelConfig config = read_pronghorn_config({json, "test"});
  EXPECT_EQ(config.diffusion->mask_token, -1);
  set_vocabulary(config, 300);
  EXPECT_EQ(config.diffusion->mask_token, 300);
  EXPECT_EQ(config.vocab_size, 301);
  json["diffusion"]["mask_token"] = 7;
  config = read_pronghorn_config({json, "test"});
  set_vocabulary(config, 300);
  EXPECT_EQ(config.diffusion->mask_token, 7);
  EXPECT_EQ(config.vocab_size, 300);
  ModelConfig plain = testing_support::tiny_config();
  set_vocabulary(plain, 300);
  EXPECT_EQ(plain.vocab_size, 300);
}

// Whatever the mixer, the first row sees the last token; in blocks only as far as its block goes.
TEST(DiffusionModel, RowsSeeLaterTokens) {
  for (const char* pattern : {"a", "l", "m", "r", "w", "b", "amr"}) {
    SCOPED_TRACE(pattern);
    const Model model(diffusion_config(pattern), 3);
    std::vector<int32_t> tokens = random_tokens(30, 60, 1);
    const std::vector<float> before = run(model, fresh(tokens), Precision::f32);
    tokens[29] = (tokens[29] + 1) % 60;
    const std::vector<float> after = run(model, fresh(tokens), Precision::f32);
    // A window sees five tokens.
    const int64_t row = std::string(pattern) == "w" ? 25 : 0;
    EXPECT_NE(bit_difference(row_of(after, row), row_of(before, row)), "");
  }
  const Model model(diffusion_config("al", R"("block": 8)"), 3);
  std::vector<int32_t> tokens = random_tokens(30, 60, 1);
  const std::vector<float> before = run(model, fresh(tokens), Precision::f32);
  tokens[15] = (tokens[15] + 1) % 60;
  const std::vector<float> after = run(model, fresh(tokens), Precision::f32);
  EXPECT_EQ(bit_difference(row_of(after, 7), row_of(before, 7)), "");
  EXPECT_NE(bit_difference(row_of(after, 8), row_of(before, 8)), "");
  EXPECT_NE(bit_difference(row_of(after, 16), row_of(before, 16)), "");
}

// f(x) + R f(R x) turns round with x, in every layer of a stack: to the bit, as sums of two numbers
// do not depend on their order.
TEST(DiffusionModel, SharedDirectionsTurnRoundWithTheText) {
  for (const char* pattern : {"m", "r", "2m r"}) {
    SCOPED_TRACE(pattern);
    const Model model(diffusion_config(pattern, R"("shared_directions": true)"), 5);
    const std::vector<int32_t> tokens = random_tokens(40, 60, 2);
    const std::vector<float> there = run(model, fresh(tokens), Precision::f32);
    const std::vector<float> back =
        run(model, fresh(std::vector<int32_t>(tokens.rbegin(), tokens.rend())), Precision::f32);
    for (int64_t row = 0; row < 40; ++row) {
      EXPECT_EQ(bit_difference(row_of(back, 39 - row), row_of(there, row)), "") << "row " << row;
    }
  }
}

TEST(DiffusionModel, DirectionsHaveWeightsOfTheirOwnUnlessShared) {
  const Model own(diffusion_config("m"), 5);
  const Model shared(diffusion_config("m", R"("shared_directions": true)"), 5);
  const Model causal(model_config(R"("pattern": "m", "blocks": {"m": {"mixer": {"type": "mamba2",
      "heads": 3, "state": 5}}})"),
                     5);
  EXPECT_EQ(shared.parameter_count(), causal.parameter_count());
  EXPECT_GT(own.parameter_count(), causal.parameter_count());
  EXPECT_TRUE(std::ranges::any_of(own.parameters(), [](const Parameter& parameter) {
    return parameter.name == "layers.0.mixer.backward.out_proj.weight";
  }));
}

// Neighbours, and how a batch is put together, change nothing.
TEST(DiffusionModel, TextsOfABatchDoNotSeeEachOther) {
  const Model model(diffusion_config("amr"), 3);
  const std::vector<int32_t> first = random_tokens(21, 60, 1), second = random_tokens(33, 60, 2);
  Batch both;
  add_fresh_segment(both, first);
  add_fresh_segment(both, second);
  std::vector<float> apart = run(model, fresh(first), Precision::f32);
  const std::vector<float> rest = run(model, fresh(second), Precision::f32);
  apart.insert(apart.end(), rest.begin(), rest.end());
  EXPECT_LT(relative_difference(run(model, both, Precision::f32), apart), kTolerance);
}

// Blocks read one by one into a state, or several at a time, give what the whole text gives.
TEST(DiffusionModel, BlocksAreReadExactly) {
  for (const int64_t block : {4, 8, 32}) {
    SCOPED_TRACE(block);
    const Model model(diffusion_config("ala", fmt::format("\"block\": {}", block)), 3);
    const std::vector<int32_t> tokens = random_tokens(4 * block, 60, 1);
    const std::vector<float> whole = run(model, fresh(tokens), Precision::f32);
    const auto read = [&](const std::vector<int64_t>& blocks) {
      SequenceState state = model.new_state();
      std::vector<int64_t> steps;
      for (const int64_t count : blocks) steps.push_back(count * block);
      return testing_support::decode(model, state, tokens, steps);
    };
    const std::vector<float> ones = read({1, 1, 1, 1});
    EXPECT_LT(relative_difference(ones, whole), kTolerance);
    EXPECT_LT(relative_difference(read({3, 1}), whole), kTolerance);
    // Steps of up to 16 tokens are the same to the bit.
    if (2 * block <= kExactStep) {
      EXPECT_EQ(bit_difference(read({2, 1, 1}), ones), "");
      EXPECT_EQ(bit_difference(read({1, 2, 1}), ones), "");
    }
  }
}

// What training reads at once, as a text and its noisy copy, is what decoding reads in turn: the
// noisy block after the state of the blocks before it.
TEST(DiffusionModel, TwoCopiesAreWhatDecodingSees) {
  constexpr int64_t kBlock = 4, kLength = 22;
  const Model model(diffusion_config("al", R"("block": 4)"), 3);
  const std::vector<int32_t> clean = random_tokens(kLength, 60, 1);
  std::vector<int32_t> noisy = clean;
  for (size_t i = 0; i < noisy.size(); i += 3) noisy[i] = kMaskToken;
  Batch batch;
  add_fresh_segment(batch, clean);
  add_fresh_segment(batch, noisy);
  batch.segments.pop_back();
  batch.segments[0].length = 2 * kLength;
  batch.segments[0].mask = Mask::two_copies;
  batch.segments[0].block = kBlock;
  const std::vector<float> both = run(model, batch, Precision::f32);
  const auto half = both.begin() + kLength * 61;
  EXPECT_LT(relative_difference({both.begin(), half}, run(model, fresh(clean), Precision::f32)),
            kTolerance);

  SequenceState state = model.new_state();
  std::vector<float> in_turn;
  for (int64_t begin = 0; begin < kLength; begin += kBlock) {
    const auto at = static_cast<size_t>(begin);
    const auto count = static_cast<size_t>(std::min(kBlock, kLength - begin));
    const std::vector<float> part =
        run(model, continue_sequence(state, std::span(noisy).subspan(at, count)), Precision::f32);
    in_turn.insert(in_turn.end(), part.begin(), part.end());
    state.truncate(begin);
    run(model, continue_sequence(state, std::span(clean).subspan(at, count)), Precision::f32);
  }
  EXPECT_LT(relative_difference({half, both.end()}, in_turn), kTolerance);
}

// The derivative of the weighted loss along a random direction of all parameters. Steps and
// tolerances: those of model_gradient_test.cpp.
TEST(DiffusionModel, GradientsEqualDifferences) {
  struct Case {
    const char *pattern, *diffusion;
  };
  for (const Case& one :
       {Case{"2r am", ""}, Case{"2r mw", R"("shared_directions": true)"},
        Case{"al", R"("block": 8)"}, Case{"2r m", R"("block": 8)"},
        Case{"ks", R"("block": 8, "shared_directions": true)"}, Case{"hd", R"("block": 8)"}}) {
    SCOPED_TRACE(one.pattern);
    const Model model(diffusion_config(one.pattern, one.diffusion), 7);
    // As many tokens as there, so that rounding is as small beside the loss.
    constexpr size_t kTokens = 144;
    constexpr double kScale = 1.0 / (2 * kTokens);  // weights are 2 on average
    const std::vector<int32_t> tokens = random_tokens(kTokens, 61, 1);
    const std::vector<int32_t> targets = random_tokens(kTokens, 60, 2);
    std::vector<float> weights(kTokens);
    for (size_t i = 0; i < kTokens; ++i) weights[i] = static_cast<float>(1 + i / 48);
    Batch batch = fresh(tokens);
    if (model.config().diffusion->block > 0) {
      batch.segments[0].mask = Mask::two_copies;
      batch.segments[0].block = 8;
      for (size_t i = 0; i < kTokens / 2; ++i) {
        batch.positions[kTokens / 2 + i] = static_cast<int32_t>(i);
      }
    }
    const auto loss = [&](Tape* tape) {
      const Context context{tape, Precision::f32};
      const Tensor hidden = model.forward(context, batch);
      return kScale * model.cross_entropy(context, hidden, targets, kScale, 0, weights).nll;
    };
    Tape tape;
    loss(&tape);
    tape.run_backward();
    for (size_t p = 0; p < model.parameters().size(); ++p) {
      const Parameter& parameter = model.parameters()[p];
      SCOPED_TRACE(parameter.name);
      ASSERT_TRUE(parameter.value.has_grad());
      expect_slope_along_signs(parameter, p, loss);
    }
  }
}

TEST(DiffusionModel, SaysWhatItCannot) {
  const Model whole(diffusion_config("a"), 3);
  SequenceState state = whole.new_state();
  const std::vector<int32_t> tokens = random_tokens(8, 60, 1);
  EXPECT_THAT(error_of([&] { whole.forward({}, continue_sequence(state, tokens)); }),
              HasSubstr("sees its texts whole"));
  const Model blocks(diffusion_config("a", R"("block": 4)"), 3);
  state = blocks.new_state();
  EXPECT_THAT(error_of([&] {
                blocks.forward({}, continue_sequence(state, std::span(tokens).first(3)));
                blocks.forward({}, continue_sequence(state, tokens));
              }),
              HasSubstr("blocks of 4 tokens, none of which begins at 3"));
  state = blocks.new_state();
  blocks.forward({}, continue_sequence(state, std::span(tokens).first(4)));
  Batch tree;
  add_segment(tree, state, tokens, {-1, 0, 0, 1, 1, 2, 2, 3});
  EXPECT_THAT(error_of([&] { blocks.forward({}, tree); }), HasSubstr("token tree"));
  EXPECT_THAT(error_of([&] { Model(diffusion_config("b", R"("block": 4)"), 1); }),
              HasSubstr("moba sees earlier rows only"));
  EXPECT_THAT(error_of([&] { Model(diffusion_config("w", R"("block": 4)"), 1); }),
              HasSubstr("in a window"));
  EXPECT_THAT(error_of([&] { diffusion_config("a", R"("mask_token": 61)"); }),
              HasSubstr("mask_token"));
  EXPECT_THAT(error_of([&] { diffusion_config("a", R"("mask_token": -1)"); }),
              HasSubstr("mask_token"));
  EXPECT_THAT(error_of([&] {
                read_pronghorn_config({parse_json(R"({"vocab_size": 1, "hidden_size": 8, "pattern":
                    "a", "diffusion": {}, "blocks": {"a": {"mixer": {"type": "attention",
                    "heads": 1}}}})",
                                                  "test"),
                                       "test"});
              }),
              HasSubstr("a single token"));
  EXPECT_THAT(error_of([&] { diffusion_config("a", R"("block": 4, "shift": true)"); }),
              HasSubstr("shift"));
  const auto refused = [](const std::string& body) {
    return error_of([&] {
      Model(model_config(R"("diffusion": {}, "blocks": {"a": {"mixer": {"type": "attention",
          "heads": 2}, "ffn": {"type": "channel_mix", "size": 20}}}, )" +
                         body),
            1);
    });
  };
  EXPECT_THAT(refused(R"("pattern": "a", "mtp": {"heads": 1})"), HasSubstr("sees both ways"));
  EXPECT_THAT(refused(R"("pattern": "a", "prefix_tokens": 2)"), HasSubstr("sees both ways"));
  EXPECT_THAT(refused(R"x("pattern": "a(a)", "subsample": {"keep": 0.5})x"),
              HasSubstr("sees both ways"));
  EXPECT_THAT(refused(R"("pattern": "a")"), HasSubstr("channel_mix looks at earlier rows"));
}

}  // namespace
}  // namespace pronghorn
