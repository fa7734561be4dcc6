// Caches that keep less than all of a text, in whole models.
#include <gtest/gtest.h>

#include <cmath>
#include <span>
#include <string>

#include "base/error.h"
#include "decode/session.h"
#include "model/model.h"
#include "support/model_runs.h"
#include "support/steps.h"
#include "support/tiny_models.h"
#include "train/evaluate.h"

namespace pronghorn {
namespace {

using testing_support::equal_steps;
using testing_support::model_config;
using testing_support::model_configs;
using testing_support::relative_difference;

CacheOptions rolling(int64_t window, int64_t sinks) {
  CacheOptions cache;
  cache.window = window;
  cache.sinks = sinks;
  return cache;
}

std::vector<int32_t> tokens(int64_t count) {
  Random random(6, "tokens");
  std::vector<int32_t> all;
  for (int64_t i = 0; i < count; ++i) all.push_back(static_cast<int32_t>(random.below(61)));
  return all;
}

std::vector<float> run(const Model& model, SequenceState& state, std::span<const int32_t> text,
                       const std::vector<int64_t>& steps) {
  std::vector<float> all;
  size_t at = 0;
  for (const int64_t step : steps) {
    const auto count = static_cast<size_t>(step);
    const Batch batch = continue_sequence(state, text.subspan(at, count));
    const PooledVector<float> hidden = model.forward({}, batch).read();
    all.insert(all.end(), hidden.begin(), hidden.end());
    at += count;
  }
  return all;
}

// Every kind of model, whatever attention it has.
TEST(ModelCaches, StreamsAreTheSameHoweverTheyAreCut) {
  const std::vector<int32_t> text = tokens(140);
  for (const auto& [name, body] : model_configs()) {
    const Model model(model_config(body), 7);
    const CacheOptions cache = rolling(24, 3);
    SequenceState ones = model.new_state(cache), some = ones, whole = ones,
                  plain = model.new_state();
    const std::vector<float> want = run(model, ones, text, equal_steps(140, 1));
    EXPECT_EQ(run(model, some, text, equal_steps(140, 16)), want) << name;
    // The bound of the laws of whole models (ModelLawsTest.LongPieces).
    EXPECT_LT(relative_difference(run(model, whole, text, {100, 40}), want), 3e-5) << name;
    const std::vector<float> all = run(model, plain, text, equal_steps(140, 1));
    if (name == "window" || name == "mamba") {
      EXPECT_EQ(all, want) << name;  // looks back no further anyway
    }
    if (name == "transformer") {
      EXPECT_NE(all, want);
    }
    // A window that is long enough changes nothing.
    SequenceState wide = model.new_state(rolling(200, 3));
    EXPECT_EQ(run(model, wide, text, equal_steps(140, 1)), all) << name;
  }
}

TEST(ModelCaches, StreamsTakeConstantMemory) {
  const std::vector<int32_t> text = tokens(2048);
  for (const auto& [name, body] : model_configs()) {
    if (name != "transformer" && name != "mla" && name != "hybrid") continue;
    const Model model(model_config(body), 7);
    const CacheOptions cache = rolling(64, 4);
    SequenceState state = model.new_state(cache);
    run(model, state, text, {512});
    const int64_t bytes = state.bytes();
    EXPECT_EQ(bytes, model.predicted_state_bytes(512, cache)) << name;
    run(model, state, std::span(text).subspan(512), {512, 1024});
    EXPECT_EQ(state.bytes(), bytes) << name;
    EXPECT_EQ(model.predicted_state_bytes(int64_t{1} << 30, cache), bytes) << name;
    EXPECT_GT(model.predicted_state_bytes(2048), 3 * bytes / 2) << name;
  }
}

// Keys and values in blocks: the same however a text is cut, forked or saved, in less memory.
TEST(ModelCaches, BlocksAreTheSameHoweverATextIsCut) {
  const std::vector<int32_t> text = tokens(140);
  for (const auto& [name, body] : testing_support::whole_block_configs()) {
    const Model model(model_config(body), 7);
    SequenceState plain = model.new_state();
    const std::vector<float> exact = run(model, plain, text, equal_steps(140, 1));
    for (const DType type : {DType::q8_0, DType::q4_0}) {
      SequenceState ones = model.new_state(type), some = ones, whole = ones;
      const std::vector<float> want = run(model, ones, text, equal_steps(140, 1));
      EXPECT_EQ(run(model, some, text, equal_steps(140, 16)), want) << name;
      // Whole models of random weights move by some times as much as their rows do, but where other
      // keys are chosen: more than that is something else. Long pieces differ by rounding, which
      // now and then is that of a row to the next whole number.
      const double most = type == DType::q8_0 ? 0.05 : 0.8;
      const std::vector<float> pieces = run(model, whole, text, {100, 40});
      if (name != "dsa_whole_blocks") {
        EXPECT_LT(relative_difference(pieces, want), most / 10) << name;
        EXPECT_LT(relative_difference(want, exact), most) << name;
      }
      EXPECT_NE(want, exact);
      EXPECT_EQ(ones.bytes(), model.predicted_state_bytes(140, type)) << name;
      EXPECT_LT(static_cast<double>(ones.bytes()),
                (type == DType::q8_0 ? 0.3 : 0.18) * static_cast<double>(plain.bytes()));
      const std::string saved = ones.save();
      SequenceState loaded =
          SequenceState::load(std::as_bytes(std::span(saved)), model.layout(type), "test");
      SequenceState fork = ones;
      const std::vector<float> next = run(model, fork, std::span(text).first(9), {9});
      EXPECT_EQ(run(model, loaded, std::span(text).first(9), {4, 5}), next) << name;
      fork.truncate(140);
      EXPECT_EQ(fork.save(), saved) << name;
      EXPECT_THROW(SequenceState::load(std::as_bytes(std::span(saved)), model.layout(), "test"),
                   Error);
    }
  }
  // Narrow heads are no whole blocks.
  const Model narrow(model_config(model_configs().front().second), 7);
  EXPECT_THROW(narrow.new_state(DType::q8_0), Error);
}

TEST(ModelCaches, SessionsKnowTheirCache) {
  const Model model(model_config(model_configs().front().second), 7);
  Session session(model, rolling(16, 4));
  session.append(tokens(100));
  session.scores(model, {});
  const auto path = std::filesystem::path(testing::TempDir()) / "cache_options_session";
  session.save(path);
  EXPECT_EQ(Session::load(path, model, rolling(16, 4)).length(), 100);
  EXPECT_THROW(Session::load(path, model, rolling(16, 3)), Error);
  EXPECT_THROW(Session::load(path, model), Error);
  std::filesystem::remove(path);
}

TEST(ModelCaches, EvaluationReadsWithThem) {
  const Model model(model_config(model_configs().front().second), 7);
  const std::vector<int32_t> text = tokens(300);
  const double plain = evaluate_tokens(model, Precision::f32, text, 300).nll;
  EXPECT_NEAR(evaluate_tokens(model, Precision::f32, text, 300, {}, rolling(300, 4)).nll, plain,
              1e-4 * plain);
  EXPECT_NE(evaluate_tokens(model, Precision::f32, text, 300, {}, rolling(20, 4)).nll, plain);
}

// With pages for the whole text nothing changes; with few, cuts do not matter.
TEST(ModelCaches, PagesAreChosenHoweverATextIsCut) {
  const std::vector<int32_t> text = tokens(150);
  CacheOptions all, few;
  all.quest_pages = 100;
  few.quest_pages = 2;
  for (const auto& [name, body] : model_configs()) {
    const Model model(model_config(body), 7);
    SequenceState plain = model.new_state(), everything = model.new_state(all);
    const std::vector<float> want = run(model, plain, text, equal_steps(150, 1));
    EXPECT_EQ(run(model, everything, text, equal_steps(150, 7)), want) << name;
    SequenceState ones = model.new_state(few), some = ones;
    const std::vector<float> chosen = run(model, ones, text, equal_steps(150, 1));
    EXPECT_EQ(run(model, some, text, equal_steps(150, 16)), chosen) << name;
    EXPECT_EQ(some.bytes(), ones.bytes()) << name;
    if (model.config().span_count() > 0) continue;  // what reaches a span is only expected
    SequenceState prompted = model.new_state(few);
    run(model, prompted, text, {100});
    EXPECT_EQ(prompted.bytes(), model.predicted_state_bytes(100, few)) << name;
  }
}

// Every kind of model with attention to all that came before; the others say that they have none.
TEST(ModelCaches, RowsAreDroppedHoweverATextIsCut) {
  const std::vector<int32_t> text = tokens(210);
  CacheOptions few, all;
  few.h2o = 9;
  all.h2o = 210;
  int dropped = 0;
  for (const auto& [name, body] : model_configs()) {
    SCOPED_TRACE(name);
    const Model model(model_config(body), 7);
    if (model.config().diffusion) continue;
    SequenceState ones, plain = model.new_state();
    try {
      ones = model.new_state(few);
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("no layer"), std::string::npos) << error.what();
      EXPECT_NE(name, "transformer");
      continue;
    }
    ++dropped;
    SequenceState some = ones, whole = ones, everything = model.new_state(all);
    const std::vector<float> want = run(model, ones, text, equal_steps(210, 1));
    EXPECT_EQ(run(model, some, text, equal_steps(210, 16)), want);
    EXPECT_EQ(some.bytes(), ones.bytes());
    const std::vector<float> exact = run(model, plain, text, equal_steps(210, 1));
    EXPECT_EQ(run(model, everything, text, equal_steps(210, 7)), exact);
    const std::string saved = some.save();
    SequenceState loaded =
        SequenceState::load(std::as_bytes(std::span(saved)), model.layout(few), "test");
    EXPECT_EQ(loaded.save(), saved);
    if (name == "transformer") {
      EXPECT_NE(exact, want);
      // Long enough that rows are more than the queries that wait to judge them.
      run(model, whole, tokens(600), {600});
      EXPECT_EQ(whole.bytes(), model.predicted_state_bytes(600, few));
      EXPECT_LT(whole.bytes(), model.predicted_state_bytes(600) / 2);
    }
  }
  EXPECT_GE(dropped, 4);
}

}  // namespace
}  // namespace pronghorn
