// Latent attention: long pieces of sequences that are kept are computed in the expanded form, and
// are the same as steps within rounding.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/watched_backend.h"
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
using testing_support::run;

// That of the laws of whole models (ModelLawsTest.LongPieces).
constexpr double kTolerance = 3e-5;

// Counts how often rows of journals are read to make keys and values of them, as long as it lives.
class Readings final : public KernelWatcher {
 public:
  Readings()
      : backend_(make_watched_backend(backend(), *this)), before_(exchange_backend(*backend_)) {}
  ~Readings() override { exchange_backend(before_); }
  Readings(const Readings&) = delete;
  Readings& operator=(const Readings&) = delete;

  void begin(const KernelCall& call) override {
    if (std::string_view(call.kernel) == "load_rows") ++count_;
  }
  void end() override {}

  bool any() { return count_.exchange(0) > 0; }

 private:
  std::atomic<int64_t> count_ = 0;
  std::unique_ptr<Backend> backend_;
  Backend& before_;
};

// With YaRN, whose factor on the scores is part of `scale` as checkpoints have it.
std::string body(int64_t latent, int64_t value_dim) {
  return fmt::format(R"("pattern": "2b", "blocks": {{"b": {{"mixer": {{"type": "mla", "heads": 3,
      "head_dim": 8, "rope_dim": 4, "value_dim": {}, "latent": {}, "query_rank": 14, "scale": 0.4,
      "rope": {{"scaling": {{"type": "yarn", "factor": 40, "original_context": 64}}}}}},
      "ffn": {{"type": "swiglu", "size": 20}}}}}})",
                     value_dim, latent);
}

struct Mla : testing::Test {
  const Model model{model_config(body(24, 6)), 4};

  std::vector<int32_t> tokens(int64_t count, uint64_t seed = 3) const {
    return random_tokens(count, model.config().vocab_size, seed);
  }
  std::vector<float> decoded(std::span<const int32_t> text, const std::vector<int64_t>& steps,
                             DType type = DType::f32) const {
    SequenceState state = model.new_state(type);
    return decode(model, state, text, steps);
  }
};

TEST_F(Mla, LongPiecesAreExpanded) {
  const auto text = tokens(150);
  const auto expected = decoded(text, equal_steps(150, 1));
  Readings readings;
  for (const std::vector<int64_t>& steps :
       {std::vector<int64_t>{150}, {64, 86}, {5, 100, 16, 29}}) {
    EXPECT_LE(relative_difference(decoded(text, steps), expected), kTolerance)
        << fmt::format("{}", fmt::join(steps, " "));
    EXPECT_TRUE(readings.any()) << fmt::format("{}", fmt::join(steps, " "));
  }
  // Steps are not, and their bits are the same however they are cut.
  EXPECT_EQ(bit_difference(decoded(text, equal_steps(150, 16)), expected), "");
  EXPECT_FALSE(readings.any());
}

// Keys and values of so many rows are made of some heads at a time.
TEST_F(Mla, LongTextsAreExpandedSomeHeadsAtATime) {
  const int64_t count = kPromptPiece + 100;
  const auto text = tokens(count);
  const auto expected = decoded(text, equal_steps(count, 16));
  Readings readings;
  EXPECT_LE(relative_difference(decoded(text, {1000, count - 1000}), expected), kTolerance);
  EXPECT_TRUE(readings.any());
}

TEST_F(Mla, SequencesOfOneBatchHaveTheirOwnEarlierRows) {
  const auto first = tokens(100, 1), second = tokens(70, 2);
  SequenceState one = model.new_state(), two = model.new_state();
  decode(model, one, std::span(first).first(60), equal_steps(60, 16));
  auto expected = decoded(first, equal_steps(100, 1));
  expected.erase(expected.begin(), expected.begin() + 60 * model.config().vocab_size);
  const auto of_second = decoded(second, equal_steps(70, 1));
  expected.insert(expected.end(), of_second.begin(), of_second.end());
  Batch batch;
  add_segment(batch, one, std::span(first).subspan(60));
  add_segment(batch, two, second);
  Readings readings;
  EXPECT_LE(relative_difference(run(model, batch, Precision::f32), expected), kTolerance);
  EXPECT_TRUE(readings.any());
  EXPECT_EQ(one.length(), 100);
  EXPECT_EQ(two.length(), 70);
}

// Keys and values are made of latent vectors as the cache has rounded them: what pieces differ by
// is much less than what rounding does.
TEST_F(Mla, RoundedRowsAreRead) {
  const auto text = tokens(150);
  const auto exact = decoded(text, equal_steps(150, 1));
  for (const DType type : {DType::bf16, DType::f16}) {
    const auto expected = decoded(text, equal_steps(150, 1), type);
    const double rounding = relative_difference(expected, exact);
    Readings readings;
    EXPECT_LT(relative_difference(decoded(text, {90, 60}, type), expected), rounding / 2)
        << dtype_name(type);
    EXPECT_TRUE(readings.any());
  }
}

TEST_F(Mla, WhatIsAbsorbed) {
  const auto text = tokens(100);
  Readings readings;
  // Rows must be exact: a step of another sequence is beside the prompt.
  SequenceState prompt = model.new_state(), step = model.new_state();
  Batch both;
  add_segment(both, prompt, text);
  add_segment(both, step, std::span(text).first(1));
  run(model, both, Precision::f32);
  EXPECT_FALSE(readings.any());
  // A cache that drops rows.
  CacheOptions window;
  window.window = 40;
  SequenceState rolling = model.new_state(window);
  decode(model, rolling, text, std::vector<int64_t>{60, 40});
  EXPECT_FALSE(readings.any());
  // Few rows after many, where latent vectors are hardly wider than keys and values: to make these
  // of all earlier rows would take more than it saves.
  const Model narrow(model_config(body(16, 20)), 4);
  SequenceState state = narrow.new_state();
  decode(narrow, state, text, std::vector<int64_t>{80});
  EXPECT_TRUE(readings.any());
  decode(narrow, state, text, std::vector<int64_t>{20});
  EXPECT_FALSE(readings.any());
}

}  // namespace
}  // namespace pronghorn
