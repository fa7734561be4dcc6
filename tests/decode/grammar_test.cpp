// Texts that follow a grammar: alone and together, with guesses and without, the same text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "decode/generator.h"
#include "decode/syllable_tokenizer.h"
#include "decode/test_drafters.h"
#include "grammar/grammar_store.h"
#include "support/diffusion_models.h"
#include "support/errors.h"
#include "support/model_runs.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using namespace testing_support;
using testing::HasSubstr;

constexpr int32_t kVocabulary = 61, kEnd = 42;  // the end is a q, of which no grammar here has any

// Each letter of it is a token of its own, too.
constexpr const char* kGrammar =
    "root ::= pair{3,60} (\"z\" | \"y\" \"z\"?)\n"
    "pair ::= [a-e] [f-k] | \"m\" pair \"n\"";

class GrammarTextTest : public testing::TestWithParam<const char*> {
 protected:
  static ModelConfig config(const std::string& name) {
    const auto found =
        std::ranges::find(model_configs(), name, &std::pair<std::string, std::string>::first);
    return model_config(found->second);
  }

  std::shared_ptr<TokenGrammar> grammar(const char* text = kGrammar) {
    return store_.get(text, [&] { return parse_grammar(text); });
  }
  GenerateOptions options(double temperature, uint64_t seed = 5) {
    GenerateOptions options;
    options.max_tokens = 150;
    options.sampling.temperature = temperature;
    options.sampling.seed = seed;
    options.grammar = grammar();
    return options;
  }

  std::vector<Generated> write(const GenerateOptions& options, Speculation* speculation) {
    std::vector<Session> sessions(2, Session(model_));
    std::vector<std::vector<int32_t>> prompts = {random_tokens(9, kVocabulary, 1),
                                                 random_tokens(20, kVocabulary, 2)};
    std::vector<Generation> generations;
    for (size_t i = 0; i < 2; ++i) {
      generations.push_back({&sessions[i], prompts[i], options, {}, {}});
    }
    return generate(model_, *tokenizer_, generations, speculation);
  }

  // The tokens, and then what may or must come, by the grammar.
  void expect_follows(const Generated& text) {
    GrammarState state(grammar(), {kEnd});
    for (const int32_t token : text.ids) ASSERT_TRUE(state.take(token)) << text.text;
    if (text.end == Generated::End::end_token) EXPECT_TRUE(state.ended()) << text.text;
    if (text.end == Generated::End::length) EXPECT_FALSE(state.ended());
  }

  const Model model_{config(GetParam()), 21};
  const std::shared_ptr<const Tokenizer> tokenizer_ = std::make_shared<SyllableTokenizer>(kEnd);
  GrammarStore store_{tokenizer_, kVocabulary};
};

TEST_P(GrammarTextTest, FollowIt) {
  int ended = 0;
  for (const double temperature : {0.0, 0.8, 3.0}) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      for (const Generated& text : write(options(temperature, seed), nullptr)) {
        expect_follows(text);
        ended += text.end == Generated::End::end_token ? 1 : 0;
      }
    }
  }
  EXPECT_GT(ended, 4);
}

TEST_P(GrammarTextTest, GuessesChangeNothing) {
  for (const double temperature : {0.0, 0.8}) {
    const GenerateOptions options = this->options(temperature);
    const std::vector<Generated> plain = write(options, nullptr);
    std::vector<std::vector<int32_t>> futures = {plain[0].ids, plain[1].ids};
    // Those with intentions are told all but the token that the prompt itself gives.
    const auto expect_same = [&](std::unique_ptr<Drafter> drafter, int64_t branches) {
      SpeculationOptions settings;
      settings.control.draft_tokens = 6;
      settings.control.branches = branches;
      const std::string name = drafter->name();
      Speculation speculation(std::move(drafter), settings);
      const std::vector<Generated> guessed = write(options, &speculation);
      for (size_t i = 0; i < 2; ++i) {
        EXPECT_EQ(guessed[i].ids, plain[i].ids) << name;
        EXPECT_EQ(guessed[i].text, plain[i].text) << name;
        EXPECT_EQ(guessed[i].end, plain[i].end) << name;
      }
      return speculation.stats();
    };
    for (const Intent intent :
         {Intent::right, Intent::wrong, Intent::noise, Intent::right_then_wrong, Intent::trees}) {
      expect_same(std::make_unique<IntentDrafter>(intent, futures, kVocabulary), 1);
    }
    expect_same(make_ngram_drafter(), 1);
    expect_same(make_suffix_drafter(), 1);
    for (const int64_t branches : {1, 3}) {
      const SpeculationStats stats = expect_same(make_early_exit_drafter(model_, 1), branches);
      EXPECT_GT(stats.accepted, 0);
    }
  }
}

// Block verification draws another text, which follows the grammar as well.
TEST_P(GrammarTextTest, BlocksFollowIt) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    SpeculationOptions settings;
    settings.block = true;
    settings.control.draft_tokens = 5;
    Speculation speculation(make_early_exit_drafter(model_, 1), settings);
    for (const Generated& text : write(options(0.9, seed), &speculation)) expect_follows(text);
    EXPECT_GT(speculation.stats().accepted, 0);
    Speculation lookups(make_ngram_drafter(), settings);
    for (const Generated& text : write(options(0.9, seed), &lookups)) expect_follows(text);
  }
}

TEST_P(GrammarTextTest, EndsWhereNothingFollows) {
  GenerateOptions options = this->options(0);
  options.grammar = grammar("root ::= \"abf\"");
  options.min_tokens = 50;
  const std::vector<Generated> texts = write(options, nullptr);
  EXPECT_EQ(texts[0].text, "abf");
  EXPECT_EQ(texts[0].end, Generated::End::end_token);
  // An end token is no way on where the text is not complete, nor where it is not wanted.
  options.grammar = grammar("root ::= \"a\"{3,}");
  options.sampling.logit_bias = {{0, 100}};
  options.stop_at_eos = false;
  options.min_tokens = 0;
  options.max_tokens = 20;
  EXPECT_EQ(write(options, nullptr)[0].end, Generated::End::length);
}

TEST_P(GrammarTextTest, WhatLeavesNoTokenIsAnError) {
  GenerateOptions options = this->options(0);
  options.grammar = grammar("root ::= \"#\"");  // no token has it
  EXPECT_THAT(error_of([&] { write(options, nullptr); }), HasSubstr("no token may be written"));
  options.grammar = grammar("root ::= \"d\"");
  for (int32_t token = 0; token < kVocabulary; ++token) {
    options.sampling.logit_bias.emplace_back(token, -INFINITY);
  }
  EXPECT_THAT(error_of([&] { write(options, nullptr); }), HasSubstr("no token may be written"));
}

INSTANTIATE_TEST_SUITE_P(Models, GrammarTextTest, testing::Values("hybrid", "transformer"));

TEST(GrammarTexts, DiffusionModelsRefuseThem) {
  const Model model(diffusion_config("2a"), 5);
  const auto tokenizer = std::make_shared<SyllableTokenizer>();
  GrammarStore store(tokenizer, kVocabulary);
  GenerateOptions options;
  options.grammar = store.get("a", [] { return parse_grammar("root ::= \"a\""); });
  Session session(model);
  const std::vector<int32_t> prompt = {1, 2, 3};
  EXPECT_THAT(error_of([&] { generate(model, *tokenizer, session, prompt, options); }),
              HasSubstr("no grammar"));
}

TEST(GrammarTexts, SamplingKeepsToTheTokensThatAreAllowed) {
  std::vector<float> scores(200);
  for (size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(i % 37) * 0.3F;
  TokenMask allowed(200);
  for (const int32_t token : {3, 64, 70, 127, 128, 199}) allowed.allow(token);
  const std::vector<int32_t> recent = {70, 70, 36, 3};
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SamplingOptions options;
    options.seed = seed;
    options.temperature = seed % 3 == 0 ? 0 : 2;
    options.top_k = seed % 2 == 0 ? 4 : 0;
    options.top_p = seed % 5 == 0 ? 0.7 : 1;
    options.repetition_penalty = 1.3;
    options.frequency_penalty = 0.4;
    options.logit_bias = {{36, 50}, {70, 3}, {500, 1}};
    EXPECT_TRUE(allowed.allows(sample(scores, options, recent, 4, &allowed)));
    const TokenDistribution distribution = token_distribution(scores, options, recent, 4, &allowed);
    EXPECT_FALSE(distribution.tokens.empty());
    for (const int32_t token : distribution.tokens) EXPECT_TRUE(allowed.allows(token));
    for (const int32_t token : sample_ranked(scores, options, recent, 4, 10, &allowed)) {
      EXPECT_TRUE(allowed.allows(token));
    }
  }
  // With all of them allowed it is the same as without a mask.
  TokenMask all(200);
  for (int32_t token = 0; token < 200; ++token) all.allow(token);
  SamplingOptions options;
  options.temperature = 1;
  for (int64_t position = 0; position < 100; ++position) {
    EXPECT_EQ(sample(scores, options, recent, position, &all),
              sample(scores, options, recent, position));
  }
  const TokenMask none(200);
  EXPECT_TRUE(sample_ranked(scores, options, recent, 0, 3, &none).empty());
  EXPECT_THROW(sample(scores, options, recent, 0, &none), Error);
}

}  // namespace
}  // namespace pronghorn
