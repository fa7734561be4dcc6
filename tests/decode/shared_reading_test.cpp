// Prompts that several ranks read: the state that the first one then has, and the texts it writes.
#include "decode/shared_reading.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "decode/generator.h"
#include "decode/syllable_tokenizer.h"
#include "ops/exchange.h"
#include "support/errors.h"
#include "support/model_runs.h"
#include "support/sharded_models.h"
#include "support/thread_ranks.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::config_with;
using testing_support::decode;
using testing_support::error_of;
using testing_support::kShardedVocabulary;
using testing_support::random_tokens;
using testing_support::relative_difference;
using testing_support::sharded_cases;
using testing_support::ShardedCase;
using testing_support::SyllableTokenizer;
using testing_support::ThreadRanks;

// Past pages of 64 rows; what ranks read of it ends in the middle of one.
constexpr int64_t kPrompt = 150, kShared = 144;
constexpr int64_t kRest = kPrompt - kShared, kAfter = 40;

const std::vector<SequenceParallel> kKinds = {SequenceParallel::ulysses, SequenceParallel::ring};

// The state of the first of so many ranks after they have read what they read together. kept: gets
// the bytes that were sent to it for that.
SequenceState read_on(int64_t count, SequenceParallel kind, const ModelConfig& config,
                      std::span<const int32_t> prompt, int64_t* kept = nullptr) {
  SequenceState state;
  std::atomic<int64_t> bytes = 0;
  ThreadRanks::run(count, [&](Ranks& ranks) {
    const Model model(config, 1);
    const SequenceSharing sharing{&ranks, kind};
    if (ranks.is_root()) {
      Session session(model);
      session.append(prompt);
      EXPECT_EQ(read_together(model, {}, session, sharing), kShared);
      end_reading(ranks);
      EXPECT_EQ(std::ssize(session.pending()), kRest);
      EXPECT_EQ(session.state().length(), kShared);
      state = session.state();
    } else {
      help_reading(model, {}, sharing);
    }
    bytes += ranks.bytes_sent_as(kSentKept);
  });
  if (kept != nullptr) *kept = bytes;
  return state;
}

// The state of one process after as many tokens.
SequenceState read_alone(const Model& model, std::span<const int32_t> prompt) {
  SequenceState state = model.new_state();
  model.forward({}, continue_sequence(state, prompt.first(kShared)));
  return state;
}

// The logits of all that follows, the rest of the prompt first, one token at a time and in steps.
std::vector<float> logits_after(const Model& model, SequenceState state,
                                std::span<const int32_t> tokens) {
  std::vector<int64_t> steps = {kRest};
  steps.insert(steps.end(), 20, 1);
  steps.insert(steps.end(), {16, 4});
  return decode(model, state, tokens.subspan(kShared), steps);
}

std::string difference_on(int64_t count, SequenceParallel kind, const ModelConfig& config) {
  const std::vector<int32_t> tokens = random_tokens(kPrompt + kAfter, kShardedVocabulary, 1);
  const auto prompt = std::span(tokens).first(kPrompt);
  const Model model(config, 1);
  const std::vector<float> one = logits_after(model, read_alone(model, prompt), tokens);
  const std::vector<float> several =
      logits_after(model, read_on(count, kind, config, prompt), tokens);
  // f32 sums in another order, through two blocks and their states.
  const double difference = relative_difference(several, one);
  return difference < 1e-4 ? "" : fmt::format("{} on {}: {}", name_of(kind), count, difference);
}

class SharedReadingTest : public testing::TestWithParam<ShardedCase> {
 protected:
  std::vector<SequenceParallel> kinds() const {
    return GetParam().ring ? kKinds : std::vector<SequenceParallel>{SequenceParallel::ulysses};
  }
};

TEST_P(SharedReadingTest, LeavesTheStateOfOneProcess) {
  const ModelConfig config = config_with(GetParam().mixer, GetParam().more);
  for (const SequenceParallel kind : kinds()) {
    EXPECT_EQ(difference_on(2, kind, config), "");
    EXPECT_EQ(difference_on(kind == SequenceParallel::ring ? 3 : 4, kind, config), "");
  }
}

// Saving, going back and forking are those of any state.
TEST_P(SharedReadingTest, TheStateKeepsTheLaws) {
  const ModelConfig config = config_with(GetParam().mixer, GetParam().more);
  const std::vector<int32_t> tokens = random_tokens(kPrompt + kAfter, kShardedVocabulary, 1);
  const Model model(config, 1);
  for (const SequenceParallel kind : kinds()) {
    const SequenceState kept = read_on(2, kind, config, std::span(tokens).first(kPrompt));
    const std::string bytes = kept.save();
    const SequenceState loaded =
        SequenceState::load(std::as_bytes(std::span(bytes)), model.layout(), "test");
    EXPECT_EQ(
        bit_difference(logits_after(model, loaded, tokens), logits_after(model, kept, tokens)), "")
        << name_of(kind);

    const auto rest = std::span(tokens).subspan(kShared);
    SequenceState mark = kept;
    decode(model, mark, rest, std::vector<int64_t>{kRest});
    SequenceState back = mark;
    decode(model, back, rest.subspan(kRest), std::vector<int64_t>{10});
    back.truncate(kPrompt);
    const std::vector<int64_t> steps = {16, 1, 3};
    EXPECT_EQ(bit_difference(decode(model, back, rest.subspan(kRest), steps),
                             decode(model, mark, rest.subspan(kRest), steps)),
              "")
        << name_of(kind);
  }
}

INSTANTIATE_TEST_SUITE_P(Mixers, SharedReadingTest, testing::ValuesIn(sharded_cases()),
                         [](const auto& test) { return test.param.name; });

// Keys of one layer that another reads are kept once, and dropped when the forward has ended.
TEST(SharedReading, KeepsLentKeysOnce) {
  const nlohmann::json json = parse_json(
      R"({"model_type": "pronghorn", "hidden_size": 24, "vocab_size": 61, "pattern": "ab",
          "initializer_range": 0.2, "blocks": {
          "a": {"mixer": {"type": "attention", "heads": 4, "head_dim": 6, "window": 20,
                          "rope": {}, "keys_to": 1}},
          "b": {"mixer": {"type": "attention", "heads": 4, "head_dim": 6, "window": 20,
                          "rope": {}, "keys_from": 1}}}})",
      "test");
  const ModelConfig config = read_pronghorn_config(ConfigReader(json, "test"));
  for (const SequenceParallel kind : kKinds) EXPECT_EQ(difference_on(2, kind, config), "");
}

TEST(SharedReading, SendsWhatIsKept) {
  const std::vector<int32_t> prompt = random_tokens(kPrompt, kShardedVocabulary, 1);
  constexpr double kBlocks = 2, kNumber = sizeof(float);
  const double kv_heads = 4, head_dim = 6;
  const ModelConfig attention =
      config_with(R"({"type": "attention", "heads": 8, "kv_heads": 4, "head_dim": 6, "rope": {}})");
  const ModelConfig mamba2 = config_with(R"({"type": "mamba2", "heads": 4, "state": 10})");
  for (const int64_t ranks : {2, 4}) {
    const auto n = static_cast<double>(ranks);
    for (const SequenceParallel kind : kKinds) {
      int64_t kept = 0;
      read_on(ranks, kind, attention, prompt, &kept);
      const double formula = (n - 1) / n * kShared * 2 * kv_heads * head_dim * kBlocks * kNumber;
      EXPECT_NEAR(static_cast<double>(kept), formula, 0.05 * formula) << ranks;
    }
    // Heads of 2 x 24 / 4 columns, of other ranks.
    int64_t kept = 0;
    read_on(ranks, SequenceParallel::ulysses, mamba2, prompt, &kept);
    const double states = (n - 1) / n * 4 * 10 * 12 * kBlocks * kNumber;
    // And rows of the convolution, x, B and C, that go back by two intervals at most.
    const double rows = 35 * (48 + 20) * kBlocks * kNumber;
    EXPECT_GE(static_cast<double>(kept), states);
    EXPECT_LE(static_cast<double>(kept), states + rows);
  }
  // The first rank has the last piece, of 36 tokens: all that a convolution keeps, and its state.
  int64_t kept = -1;
  read_on(2, SequenceParallel::ring, mamba2, prompt, &kept);
  EXPECT_EQ(kept, 0);
}

TEST(SharedReading, WritesTheTextOfOneProcess) {
  const ModelConfig config = config_with(R"({"type": "mamba2", "heads": 4, "state": 10})");
  const std::vector<int32_t> prompt = random_tokens(kPrompt, kShardedVocabulary, 1);
  const std::vector<int32_t> more = random_tokens(40, kShardedVocabulary, 2);
  const SyllableTokenizer tokenizer;
  const Model alone(config, 1);
  GenerateOptions options;
  options.max_tokens = 24;
  Session session(alone);
  const Generated first = generate(alone, tokenizer, session, prompt, options);
  const Generated second = generate(alone, tokenizer, session, more, options);
  for (const SequenceParallel kind : kKinds) {
    ThreadRanks::run(2, [&](Ranks& ranks) {
      const Model model(config, 1);
      GenerateOptions shared = options;
      shared.sharing = {&ranks, kind};
      if (!ranks.is_root()) return help_reading(model, {}, shared.sharing);
      Session own(model);
      const Generated text = generate(model, tokenizer, own, prompt, shared);
      // Logits that differ by rounding, of which the largest is never so near to another here.
      EXPECT_EQ(text.ids, first.ids) << name_of(kind);
      EXPECT_EQ(text.prompt_tokens, kPrompt);
      EXPECT_EQ(text.steps, first.steps);
      // What goes on from a state is read by this rank alone.
      EXPECT_EQ(generate(model, tokenizer, own, more, shared).ids, second.ids) << name_of(kind);
      end_reading(ranks);
    });
  }
}

TEST(SharedReading, TakesWholeIntervalsAndLeavesAToken) {
  EXPECT_EQ(shared_tokens(kPrompt, 2), kShared);
  EXPECT_EQ(shared_tokens(145, 2), 144);
  EXPECT_EQ(shared_tokens(144, 2), 128);
  EXPECT_EQ(shared_tokens(33, 2), 32);
  EXPECT_EQ(shared_tokens(32, 2), 0);   // 16 tokens are a step
  EXPECT_EQ(shared_tokens(65, 33), 0);  // fewer than two pieces for each
  EXPECT_EQ(shared_tokens(kPrompt, 1), 0);
  EXPECT_EQ(shared_tokens(0, 2), 0);
}

TEST(SharedReading, RefusesWhatItCannotDo) {
  const std::vector<int32_t> prompt = random_tokens(kPrompt, kShardedVocabulary, 1);
  ThreadRanks::run(2, [&](Ranks& ranks) {
    const SequenceSharing sharing{&ranks, SequenceParallel::ulysses};
    const Model model(config_with(R"({"type": "rwkv7", "heads": 2})"), 1);
    Session session(model);
    session.append(prompt);
    const std::string said = error_of([&] {
      if (!ranks.is_root()) return help_reading(model, {}, sharing);
      read_together(model, {}, session, sharing);
    });
    EXPECT_THAT(said, AllOf(HasSubstr("layers.0"), HasSubstr("leave out")));
  });
  ThreadRanks::run(2, [&](Ranks& ranks) {
    const SequenceSharing sharing{&ranks, SequenceParallel::ring};
    const Model model(config_with(R"({"type": "attention", "heads": 4, "head_dim": 6})"), 1);
    if (!ranks.is_root()) return help_reading(model, {}, sharing);
    Session session(model, CacheOptions(DType::bf16));
    session.append(prompt);
    EXPECT_THAT(error_of([&] { read_together(model, {}, session, sharing); }),
                HasSubstr("cache of another kind"));
    EXPECT_EQ(session.state().length(), 0);
    end_reading(ranks);
  });
}

}  // namespace
}  // namespace pronghorn
