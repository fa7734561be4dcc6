// The public classes: scores of texts, sessions as texts, several texts together, chats, what a
// checkpoint takes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "pronghorn/pronghorn.h"
#include "support/chat_model.h"
#include "support/folder.h"

namespace pronghorn {
namespace {

using testing::ElementsAreArray;
using testing::HasSubstr;
using testing_support::Folder;

constexpr const char* kAttention =
    R"({"type": "attention", "heads": 4, "kv_heads": 2, "head_dim": 8, "rope": {}})";
constexpr const char* kMamba2 = R"({"type": "mamba2", "heads": 4, "state": 10, "groups": 2})";

class LanguageModelTest : public testing::TestWithParam<const char*> {
 protected:
  LanguageModelTest() {
    const auto json = nlohmann::json{{"model_type", "pronghorn"},
                                     {"hidden_size", 32},
                                     {"pattern", "2b"},
                                     {"blocks",
                                      {{"b",
                                        {{"mixer", nlohmann::json::parse(GetParam())},
                                         {"ffn", {{"type", "swiglu"}, {"size", 40}}}}}}}};
    write_file(folder_ / "config.json", json.dump());
    model_.emplace(LanguageModel::build(folder_ / "config.json", 7));
  }

  const LanguageModel& model() const { return *model_; }
  std::filesystem::path file(const char* name) const { return folder_ / name; }

 private:
  Folder folder_;
  std::optional<LanguageModel> model_;
};

ContinueOptions greedy(int64_t tokens) {
  ContinueOptions options;
  options.max_tokens = tokens;
  return options;
}

std::vector<int32_t> ids_of(const LanguageModel& model, int64_t count) {
  std::string text;
  while (std::ssize(text) < count) text += "A text of some length, over and over; ";
  text.resize(static_cast<size_t>(count));
  return model.tokenize(text);
}

TEST_P(LanguageModelTest, ScoresOfATextAreThoseOfEachOfItsBeginnings) {
  const std::vector<int32_t> ids = ids_of(model(), 70);
  const TokenMatrix logits = model().logits(ids);
  ASSERT_EQ(logits.rows, 70);
  ASSERT_EQ(logits.columns, model().vocab_size());
  TextSession session = model().start();
  for (size_t i = 0; i < ids.size(); ++i) {
    session.append_ids({&ids[i], 1});
    const std::vector<float> scores = session.next_logits();
    for (size_t token = 0; token < scores.size(); ++token) {
      ASSERT_NEAR(scores[token], logits.values[i * scores.size() + token], 1e-4) << i;
    }
  }
  // Asked again, or in a fork, they are the same.
  TextSession fork = session;
  EXPECT_EQ(session.next_logits(), fork.next_logits());
}

TEST_P(LanguageModelTest, LogProbabilitiesAreThoseOfTheScores) {
  const std::vector<int32_t> ids = ids_of(model(), 130);
  const TokenMatrix logits = model().logits(ids);
  const std::vector<double> found = model().log_probabilities(ids);
  ASSERT_EQ(found.size(), ids.size() - 1);
  for (size_t i = 0; i < found.size(); ++i) {
    const auto row =
        std::span(logits.values)
            .subspan(i * static_cast<size_t>(logits.columns), static_cast<size_t>(logits.columns));
    double sum = 0;
    for (const float score : row) sum += std::exp(static_cast<double>(score));
    ASSERT_NEAR(found[i], row[static_cast<size_t>(ids[i + 1])] - std::log(sum), 1e-6) << i;
  }
  EXPECT_EQ(model().log_probabilities(std::span(ids).first(1)).size(), 0u);
}

TEST_P(LanguageModelTest, HiddenStatesHaveARowForEachToken) {
  const std::vector<int32_t> ids = ids_of(model(), 20);
  const TokenMatrix hidden = model().hidden_states(ids);
  EXPECT_EQ(hidden.rows, 20);
  EXPECT_EQ(hidden.columns, model().hidden_size());
  EXPECT_EQ(hidden.values.size(), 20u * 32u);
}

TEST_P(LanguageModelTest, ASessionIsTheTextThatItWasGivenAndWrote) {
  TextSession session = model().start();
  session.append("Once");
  const Continuation one = session.generate(" upon", greedy(20));
  EXPECT_EQ(one.ids.size(), 20u);
  std::vector<int32_t> wanted = model().tokenize("Once upon");
  wanted.insert(wanted.end(), one.ids.begin(), one.ids.end());
  EXPECT_EQ(session.ids(), wanted);
  EXPECT_EQ(session.text(), model().detokenize(wanted));
  EXPECT_EQ(session.length(), std::ssize(wanted));
}

TEST_P(LanguageModelTest, ATextGoesOnFromWhereItWasCut) {
  TextSession session = model().start();
  session.append_ids(ids_of(model(), 60));
  session.generate("", greedy(30));
  const std::vector<int32_t> ids = session.ids();
  for (const int64_t length : {89, 75, 40, 3}) {  // within and beyond what a recurrence undoes
    session.truncate(length);
    EXPECT_THAT(session.ids(), ElementsAreArray(std::span(ids).first(static_cast<size_t>(length))));
    TextSession fresh = model().start();
    fresh.append_ids(session.ids());
    const std::vector<float> scores = session.next_logits(), wanted = fresh.next_logits();
    for (size_t i = 0; i < scores.size(); ++i) ASSERT_NEAR(scores[i], wanted[i], 1e-4) << length;
  }
  session.truncate(0);
  EXPECT_EQ(session.length(), 0);
  EXPECT_THROW(session.truncate(1), std::runtime_error);
  EXPECT_THROW(session.next_logits(), std::runtime_error);
}

TEST_P(LanguageModelTest, ATextGoesOnAfterItsScoresWereAskedFor) {
  TextSession session = model().start(), other = model().start();
  session.append("A beginning");
  session.next_logits();
  const Continuation after = session.generate("", greedy(12));
  EXPECT_EQ(after.text, other.generate("A beginning", greedy(12)).text);
  EXPECT_EQ(session.ids(), other.ids());
}

TEST_P(LanguageModelTest, ACallbackEndsTheText) {
  int64_t pieces = 0;
  TextSession session = model().start();
  const Continuation result =
      session.generate("Go", greedy(200), [&](std::string_view) { return ++pieces < 5; });
  EXPECT_EQ(result.end, Continuation::End::stopped);
  EXPECT_LT(result.tokens, 200);
  EXPECT_EQ(session.length(), 2 + result.tokens);
}

TEST_P(LanguageModelTest, TextsWrittenTogetherAreThoseWrittenAlone) {
  ContinueOptions options = greedy(25);
  options.temperature = 0.9;
  options.seed = 3;
  const std::vector<std::string> prompts = {"one", "another prompt", "x"};
  const std::vector<Continuation> together = model().generate(prompts, options);
  ASSERT_EQ(together.size(), 3u);
  for (size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(together[i].ids, model().generate(prompts[i], options).ids);
  }
  options.draft = "ngram";
  EXPECT_EQ(model().generate(prompts[1], options).ids, together[1].ids);
}

TEST_P(LanguageModelTest, ASavedTextComesBackWhole) {
  TextSession session = model().start();
  session.append_ids(ids_of(model(), 1500));  // longer than what a session remembers of a text
  session.generate("", greedy(5));
  session.save(file("text.session"));
  TextSession resumed = model().resume(file("text.session"));
  EXPECT_EQ(resumed.ids(), session.ids());
  EXPECT_EQ(resumed.generate("", greedy(10)).ids, session.generate("", greedy(10)).ids);
}

TEST_P(LanguageModelTest, NumbersComeOutAndGoIn) {
  const std::vector<int32_t> ids = ids_of(model(), 20);
  const TokenMatrix before = model().logits(ids);  // packs the weights
  std::map<std::string, std::vector<float>> all;
  int64_t count = 0;
  for (const ParameterInfo& info : model().parameters()) {
    all[info.name] = model().parameter(info.name);
    count += std::ssize(all[info.name]);
  }
  EXPECT_EQ(count, model().parameter_count());
  const LanguageModel same = model().with_parameters({});
  EXPECT_EQ(same.logits(ids).values, before.values);
  std::vector<float>& changed = all.begin()->second;
  for (float& number : changed) number *= 1.5f;
  const LanguageModel other = model().with_parameters({*all.begin()});
  EXPECT_EQ(other.parameter(all.begin()->first), changed);
  EXPECT_NE(other.logits(ids).values, before.values);
  changed.pop_back();
  EXPECT_THROW(model().with_parameters({*all.begin()}), std::runtime_error);
  EXPECT_THROW(model().parameter("none"), std::runtime_error);
}

INSTANTIATE_TEST_SUITE_P(Mixers, LanguageModelTest, testing::Values(kAttention, kMamba2));

TEST(LanguageModel, WhatIsOutsideTheVocabularyIsRefused) {
  Folder folder;
  write_file(folder / "config.json",
             nlohmann::json{{"model_type", "pronghorn"},
                            {"hidden_size", 16},
                            {"pattern", "b"},
                            {"blocks", {{"b", {{"mixer", {{"type", "attention"}, {"heads", 2}}}}}}}}
                 .dump());
  const LanguageModel model = LanguageModel::build(folder / "config.json");
  const std::vector<int32_t> beyond = {3, 256};
  EXPECT_THROW(model.logits(beyond), std::runtime_error);
  EXPECT_THROW(model.log_probabilities({}), std::runtime_error);
  TextSession session = model.start();
  EXPECT_THROW(session.append_ids(beyond), std::runtime_error);
  EXPECT_EQ(session.length(), 0);
  EXPECT_FALSE(model.has_chat_template());
  EXPECT_THROW(model.apply_template({{"user", "hello"}}), std::runtime_error);
}

TEST(LanguageModel, ACheckpointSaysWhatItTakes) {
  Folder folder;
  write_file(folder / "config.json",
             nlohmann::json{{"model_type", "pronghorn"},
                            {"hidden_size", 16},
                            {"vocab_size", 259},
                            {"pattern", "b"},
                            {"blocks", {{"b", {{"mixer", {{"type", "attention"}, {"heads", 2}}}}}}}}
                 .dump());
  const std::filesystem::path saved = folder / "saved";
  LanguageModel::build(folder / "config.json").save(saved);
  testing_support::write_chat_tokenizer(saved);
  const LanguageModel model = LanguageModel::load(saved);
  const MemoryEstimate estimate = LanguageModel::estimate(saved, 100);
  EXPECT_EQ(estimate.weight_bytes, 4 * model.parameter_count());
  EXPECT_EQ(estimate.state_bytes, model.state_bytes(100));
  EXPECT_EQ(model.apply_template({{"user", "hello"}}),
            "<|start|>user\nhello<|end|>\n<|start|>assistant\n");
  EXPECT_THAT(model.end_tokens(), testing::Contains(258));
  EXPECT_EQ(model.layers(), 1);
}

TEST(LanguageModel, ADiffusionModelScoresATextThatItSeesWhole) {
  Folder folder;
  write_file(
      folder / "config.json",
      nlohmann::json{
          {"model_type", "pronghorn"},
          {"hidden_size", 16},
          {"pattern", "b"},
          {"diffusion", nlohmann::json::object()},
          {"blocks",
           {{"b", {{"mixer", {{"type", "attention"}, {"heads", 2}, {"rope", {{"theta", 1e4}}}}}}}}}}
          .dump());
  const LanguageModel model = LanguageModel::build(folder / "config.json", 7);
  std::vector<int32_t> ids = ids_of(model, 20);
  const TokenMatrix logits = model.logits(ids);
  EXPECT_EQ(logits.rows, 20);
  ids.back() ^= 1;
  const TokenMatrix others = model.logits(ids);
  EXPECT_NE(std::vector(logits.values.begin(), logits.values.begin() + logits.columns),
            std::vector(others.values.begin(), others.values.begin() + logits.columns));
  EXPECT_THROW(model.log_probabilities(ids), std::runtime_error);
}

}  // namespace
}  // namespace pronghorn
