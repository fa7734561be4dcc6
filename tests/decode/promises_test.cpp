// Promises that other programs break for models with a recurrence, checked with tiny models of
// hybrid families: a restored session reads nothing again, one sequence's rejected guesses touch no
// other, a row does not depend on its batch, speculation forgets nothing that was read, going back
// leaves the state of the shorter text. Each is named after a public report.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>

#include "decode/generator.h"
#include "decode/speculation.h"
#include "decode/syllable_tokenizer.h"
#include "decode/test_drafters.h"
#include "support/folder.h"
#include "support/goldens.h"
#include "support/model_runs.h"

namespace pronghorn {
namespace {

using testing_support::bit_difference;
using testing_support::Folder;
using testing_support::golden_path;
using testing_support::Intent;
using testing_support::IntentDrafter;
using testing_support::random_tokens;
using testing_support::SyllableTokenizer;

constexpr int32_t kVocabulary = 48;  // of the tiny models

std::vector<float> scores_of(Session& session, const Model& model) {
  const Tensor scores = session.scores(model, {});
  return {scores.values().begin(), scores.values().end()};
}

class PromisesTest : public testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Model> model_ = Model::load(golden_path(GetParam()));
  SyllableTokenizer tokenizer_;

  Session session_of(std::span<const int32_t> tokens) const {
    Session session(*model_);
    session.append(tokens);
    return session;
  }
};

// github.com/ggml-org/llama.cpp/issues/25913: a restored hybrid reads its whole text again.
TEST_P(PromisesTest, LlamaCpp25913_ARestoredSessionReadsNothingAgain) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::duration time) {
    return std::chrono::duration<double>(time).count();
  };
  const std::vector<int32_t> tokens = random_tokens(8000, kVocabulary, 1);
  Session session = session_of(tokens);
  const auto began = Clock::now();
  scores_of(session, *model_);
  const double reading = seconds(Clock::now() - began);
  const Folder folder;
  session.save(folder / "session");
  const std::array<int32_t, 1> next = {7};
  session.append(next);
  const std::vector<float> expected = scores_of(session, *model_);

  double fastest = std::numeric_limits<double>::infinity();  // whatever else the machine does
  for (int attempt = 0; attempt < 5; ++attempt) {
    const auto start = Clock::now();
    Session restored = Session::load(folder / "session", *model_);
    ASSERT_EQ(restored.length(), 8000);
    restored.append(next);
    EXPECT_EQ(restored.pending().size(), 1u);
    const std::vector<float> actual = scores_of(restored, *model_);
    fastest = std::min(fastest, seconds(Clock::now() - start));
    EXPECT_EQ(bit_difference(actual, expected), "");
  }
  EXPECT_LT(fastest, 0.02 * reading) << "loading and one token, of the time of reading the text";
}

// github.com/ggml-org/llama.cpp/issues/28019: what is rolled back in one of several sequences
// corrupts the state of others.
TEST_P(PromisesTest, LlamaCpp28019_RejectedGuessesTouchNoOtherSequence) {
  GenerateOptions options;
  options.max_tokens = 40;
  constexpr size_t kTexts = 3;
  std::vector<std::vector<int32_t>> prompts, futures;
  std::vector<std::vector<float>> next;
  for (size_t i = 0; i < kTexts; ++i) {
    prompts.push_back(random_tokens(30 + 17 * static_cast<int64_t>(i), kVocabulary, i));
    Session alone(*model_);
    generate(*model_, tokenizer_, alone, prompts.back(), options);
    const auto recent = alone.recent();
    futures.emplace_back(recent.begin() + static_cast<int64_t>(prompts.back().size()),
                         recent.end());
    next.push_back(scores_of(alone, *model_));
  }
  for (const Intent intent : {Intent::wrong, Intent::right_then_wrong, Intent::trees}) {
    std::vector<Session> sessions(kTexts, Session(*model_));
    std::vector<Generation> generations;
    for (size_t i = 0; i < kTexts; ++i) {
      generations.push_back({&sessions[i], prompts[i], options, {}});
    }
    Speculation speculation(std::make_unique<IntentDrafter>(intent, futures, kVocabulary),
                            {{kMaxDraft, 1}, false});
    generate(*model_, tokenizer_, generations, &speculation);
    for (size_t i = 0; i < kTexts; ++i) {
      const auto recent = sessions[i].recent();
      EXPECT_TRUE(std::ranges::equal(recent.subspan(prompts[i].size()), futures[i])) << i;
      EXPECT_EQ(bit_difference(scores_of(sessions[i], *model_), next[i]), "") << i;
    }
  }
}

// github.com/vllm-project/vllm/issues/42960: a text depends on what else is in the batch.
TEST_P(PromisesTest, Vllm42960_ARowDoesNotDependOnItsBatch) {
  std::vector<std::vector<int32_t>> texts;
  std::vector<SequenceState> alone, together;
  for (size_t i = 0; i < 5; ++i) {
    texts.push_back(random_tokens(40, kVocabulary, 10 + i));
    alone.push_back(model_->new_state());
    together.push_back(model_->new_state());
  }
  const auto piece = [&](size_t text, size_t begin, size_t count) {
    return std::span(texts[text]).subspan(begin, count);
  };
  std::array<size_t, 5> read = {};
  const auto compare = [&](std::span<const size_t> chosen, auto&& count_of) {
    Batch batch;
    std::vector<float> expected;
    for (const size_t i : chosen) {
      const auto tokens = std::span(texts[i]).subspan(read[i], count_of(i));
      read[i] += tokens.size();
      const auto one =
          testing_support::run(*model_, continue_sequence(alone[i], tokens), Precision::f32);
      expected.insert(expected.end(), one.begin(), one.end());
      add_segment(batch, together[i], tokens);
    }
    EXPECT_EQ(bit_difference(testing_support::run(*model_, batch, Precision::f32), expected), "");
  };
  // Steps of different lengths beside each other, then single tokens of some texts.
  const std::array<size_t, 5> all = {0, 1, 2, 3, 4};
  compare(all, [](size_t i) { return std::array<size_t, 5>{3, 16, 1, 9, 5}[i]; });
  const std::array<size_t, 3> some = {4, 1, 2};
  for (int step = 0; step < 7; ++step) compare(some, [](size_t) { return size_t{1}; });
}

// github.com/vllm-project/vllm/issues/54360: with speculation, what was read before is lost.
TEST_P(PromisesTest, Vllm54360_SpeculationForgetsNothingThatWasRead) {
  GenerateOptions options;
  options.max_tokens = 24;
  const std::vector<int32_t> prompt = random_tokens(300, kVocabulary, 3);
  Session session(*model_);
  Speculation speculation(make_suffix_drafter(), {{7, 2}, false});
  generate(*model_, tokenizer_, session, prompt, options, {}, &speculation);
  const Folder folder;
  session.save(folder / "session");
  Session restored = Session::load(folder / "session", *model_);
  EXPECT_LE(restored.pending().size(), 1u) << "the last token written, and nothing of the prompt";
  Session plain(*model_);
  generate(*model_, tokenizer_, plain, prompt, options);
  EXPECT_EQ(bit_difference(scores_of(restored, *model_), scores_of(plain, *model_)), "");
}

// github.com/huggingface/transformers/issues/49036: a cache that is cropped keeps the recurrent
// state of the longer text.
TEST_P(PromisesTest, Transformers49036_GoingBackLeavesTheStateOfTheShorterText) {
  const std::vector<int32_t> text = random_tokens(200, kVocabulary, 4);
  const std::span<const int32_t> shorter = std::span(text).first(196);
  Session expected = session_of(shorter), session = session_of(shorter);
  scores_of(expected, *model_);
  scores_of(session, *model_);
  session.append(std::span(text).subspan(shorter.size()));
  scores_of(session, *model_);
  ASSERT_TRUE(session.go_back(shorter));
  EXPECT_EQ(session.length(), 196);
  const std::array<int32_t, 1> next = {9};
  session.append(next);
  expected.append(next);
  EXPECT_EQ(bit_difference(scores_of(session, *model_), scores_of(expected, *model_)), "");
}

INSTANTIATE_TEST_SUITE_P(Hybrids, PromisesTest,
                         testing::Values("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next",
                                         "granitemoehybrid", "granitemoehybrid_moe", "lfm2",
                                         "lfm2_moe", "falcon_h1", "bamba", "jamba", "nemotron_h",
                                         "olmo_hybrid", "deepseek_v3", "mamba2"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace pronghorn
