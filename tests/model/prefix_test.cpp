// Learned rows before every sequence (model/prefix.h): what a model with them computes, how a state
// counts, what observers see, which configurations are refused. The laws and gradients of such
// models are checked with those of all others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "model/text_cost.h"
#include "support/errors.h"
#include "support/model_runs.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::decode;
using testing_support::error_of;
using testing_support::model_config;
using testing_support::random_tokens;
using testing_support::relative_difference;
using testing_support::run;

constexpr int64_t kPrefix = 6;

// Attention to everything and two recurrences, with a head of its own.
std::string body(int64_t prefix) {
  return fmt::format(R"("pattern": "amn", "tie_embeddings": false, "prefix_tokens": {}, "blocks": {{
      "a": {{"mixer": {{"type": "attention", "heads": 2, "rope": {{}}}}}},
      "m": {{"mixer": {{"type": "mamba", "state": 4}}}},
      "n": {{"mixer": {{"type": "mamba2", "heads": 2, "state": 6}},
             "ffn": {{"type": "swiglu", "size": 30}}}}}})",
                     prefix);
}

std::string window_body() {
  return fmt::format(R"("pattern": "a", "prefix_tokens": {}, "blocks": {{"a": {{"mixer": {{"type":
      "attention", "heads": 2, "window": 8, "rope": {{}}}}}}}})",
                     kPrefix);
}

const Parameter& parameter(const Model& model, const std::string& name) {
  return *std::ranges::find(model.parameters(), name, &Parameter::name);
}

// The same model whose prefix is tokens of its vocabulary, after the others.
Model with_prefix_in_vocabulary(const Model& model) {
  ModelConfig config = model_config(body(0));
  config.vocab_size = model.config().vocab_size + kPrefix;
  Model other(config, 99);
  for (const Parameter& to : other.parameters()) {
    std::span<float> values = to.value.values();
    const Parameter& from = parameter(model, to.name);
    std::ranges::copy(from.value.values(), values.begin());
    if (to.name == "embeddings.weight") {
      std::ranges::copy(parameter(model, "prefix.weight").value.values(),
                        values.begin() + from.value.size());
    }
    to.value.bump_version();
  }
  return other;
}

std::vector<float> last_hidden(const Model& model, const Batch& batch, int64_t rows) {
  const Tensor hidden = model.forward({}, batch);
  const std::span<float> values = hidden.values();
  return {values.end() - rows * hidden.columns(), values.end()};
}

TEST(Prefix, IsWhatTokensInFrontWouldBe) {
  constexpr int64_t kTokens = 40;
  const Model model(model_config(body(kPrefix)), 1);
  const Model other = with_prefix_in_vocabulary(model);
  const auto text = random_tokens(kTokens, 61, 2);
  std::vector<int32_t> whole(kPrefix);
  std::iota(whole.begin(), whole.end(), 61);
  whole.insert(whole.end(), text.begin(), text.end());

  const std::vector<float> expected =
      last_hidden(other, fresh_segments(whole, kPrefix + kTokens), kTokens);
  const std::vector<float> fresh = last_hidden(model, fresh_segments(text, kTokens), kTokens);
  // One forward of as many rows: the sums are the same.
  EXPECT_EQ(bit_difference(fresh, expected), "");
  SequenceState state = model.new_state();
  const std::vector<float> kept = last_hidden(model, continue_sequence(state, text), kTokens);
  // The prefix was read before the text: sums of recurrences in another order.
  EXPECT_LE(relative_difference(kept, expected), 1e-5);
}

TEST(Prefix, IsNotCountedAsTokens) {
  const Model model(model_config(body(kPrefix)), 3);
  EXPECT_EQ(parameter(model, "prefix.weight").shape, (Shape{kPrefix, 24}));
  SequenceState state = model.new_state();
  EXPECT_EQ(state.length(), 0);
  EXPECT_FALSE(state.has_begun());
  EXPECT_EQ(state.bytes(), 0);
  const auto text = random_tokens(20, 61, 4);
  const std::string saved = state.save();
  const SequenceState untouched =
      SequenceState::load(std::as_bytes(std::span(saved)), model.layout(), "test");
  const std::vector<float> expected = decode(model, state, text, std::vector<int64_t>{16, 4});
  EXPECT_EQ(state.length(), 20);
  EXPECT_TRUE(state.has_begun());
  EXPECT_EQ(state.journal(0, 0).length(), 20 + kPrefix);

  SequenceState loaded = untouched;
  EXPECT_EQ(bit_difference(decode(model, loaded, text, std::vector<int64_t>{1, 16, 3}), expected),
            "");
  // Back to where the text begins: the prefix stays.
  SequenceState back = model.new_state();
  decode(model, back, random_tokens(9, 61, 5), std::vector<int64_t>{9});
  back.truncate(0);
  EXPECT_EQ(back.length(), 0);
  EXPECT_TRUE(back.has_begun());
  EXPECT_EQ(back.journal(0, 0).length(), kPrefix);
  EXPECT_EQ(bit_difference(decode(model, back, text, std::vector<int64_t>{16, 4}), expected), "");
  EXPECT_THROW(back.truncate(21), Error);

  const std::string forged = state.save();
  EXPECT_THAT(error_of([&] {
                const Model plain(model_config(body(0)), 3);
                SequenceState::load(std::as_bytes(std::span(forged)), plain.layout(), "test");
              }),
              HasSubstr("another model"));
}

TEST(Prefix, StaysInSightOfAWindow) {
  const Model model(model_config(window_body()), 6);
  const auto text = random_tokens(1000, 61, 7);
  const auto last = [&] {
    SequenceState state = model.new_state();
    decode(model, state, text, std::vector<int64_t>{700, 299});
    EXPECT_EQ(state.bytes(), model.predicted_state_bytes(999));
    const std::string saved = state.save();
    SequenceState loaded =
        SequenceState::load(std::as_bytes(std::span(saved)), model.layout(), "test");
    const auto tail = std::span(text).subspan(999);
    const std::vector<float> scores = run(model, continue_sequence(state, tail), Precision::f32);
    EXPECT_EQ(bit_difference(run(model, continue_sequence(loaded, tail), Precision::f32), scores),
              "");
    return scores;
  };
  const std::vector<float> before = last();
  parameter(model, "prefix.weight").value.fill(0.5f);
  parameter(model, "prefix.weight").value.bump_version();
  EXPECT_GT(relative_difference(last(), before), 1e-3);
}

TEST(Prefix, ObserversSeeTheTextAlone) {
  const Model model(model_config(body(kPrefix)), 8);
  const auto text = random_tokens(30, 61, 9);
  Tensor last;
  ForwardObserver observer;
  observer.on_block = [&](const BlockEnd& end) {
    EXPECT_EQ(end.value().rows(), 30);
    last = end.hidden();
    return end.layers < 2;
  };
  // Two sequences, of which one keeps a state.
  SequenceState state = model.new_state();
  Batch batch;
  add_fresh_segment(batch, std::span(text).first(12));
  add_segment(batch, state, std::span(text).last(18));
  const Tensor stopped = model.forward({}, batch, observer);
  EXPECT_EQ(stopped.rows(), 30);
  EXPECT_EQ(bit_difference(stopped.values(), last.values()), "");
}

TEST(Prefix, RefusesWhatGoesByRowsOrPositions) {
  const auto refused = [](const std::string& more, const char* what) {
    const std::string text = R"("prefix_tokens": 4, )" + more;
    EXPECT_THAT(error_of([&] { model_config(text); }), HasSubstr(what)) << text;
  };
  const std::string blocks = R"("blocks": {"a": {"mixer": {"type": "attention", "heads": 2}}})";
  refused(R"("pattern": "a(a)a", "subsample": {"keep": 0.5}, )" + blocks, "subsampled");
  refused(R"("pattern": "aa", "mtp": {"heads": 1}, )" + blocks, "multi-token");
  refused(R"("pattern": "aa", "learned_positions": 64, )" + blocks, "learned positions");
  EXPECT_THROW(model_config(R"("prefix_tokens": -1, "pattern": "a", )" + blocks), Error);
  const Model model(model_config(body(kPrefix)), 10);
  Batch batch = fresh_segments(random_tokens(4, 61, 11), 4);
  batch.coordinates = {0, 1, 2, 3};
  EXPECT_THAT(error_of([&] { model.forward({}, batch); }), HasSubstr("coordinates"));
}

TEST(Prefix, TextsPayForItsRows) {
  const Model with(model_config(body(kPrefix)), 1), without(model_config(body(0)), 1);
  EXPECT_EQ(text_cost(without, 40).matmul, without.cost(20).matmul);
  EXPECT_EQ(text_cost(without, 40).sequence, without.cost(20).sequence);
  // A text of 40 tokens is 46 rows; six of them need no scores.
  const double head = 2.0 * static_cast<double>(with.head().size());
  const double row = without.cost(20).matmul - head;
  EXPECT_DOUBLE_EQ(40 * text_cost(with, 40).matmul, 46 * row + 40 * head);
  EXPECT_GT(text_cost(with, 40).sequence, with.cost(20).sequence);
}

}  // namespace
}  // namespace pronghorn
