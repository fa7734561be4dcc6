// Models with subsampled spans: prompts of which a span keeps nothing, everything or the first
// token only, what training's schedules change, and what is reported about them.
#include <gtest/gtest.h>

#include "base/error.h"
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

constexpr const char* kAttention =
    R"({"mixer": {"type": "attention", "heads": 4, "kv_heads": 2, "head_dim": 6, "rope": {}}})";
constexpr const char* kMamba = R"({"mixer": {"type": "mamba", "state": 5}})";
constexpr const char* kDeltaNet =
    R"({"mixer": {"type": "gated_deltanet", "heads": 2, "head_dim": 8}})";

ModelConfig nested(const std::string& block, double keep = 0.64) {
  return model_config(
      fmt::format(R"("pattern": "b(b(b)b)b", "subsample": {{"keep": {}}}, "blocks": {{"b": {}}})",
                  keep, block));
}

const Tensor& parameter(const Model& model, const std::string& name) {
  for (const Parameter& candidate : model.parameters()) {
    if (candidate.name == name) return candidate.value;
  }
  throw Error(name, "is no parameter");
}

// Makes the score of a row of the span the scalar product with the embedding of token 0, and the
// embeddings one-hot in their first two channels: token 0 scores 1, all others `other`.
void keep_only_token_0(const Model& model, float other) {
  const Tensor& embeddings = parameter(model, "embeddings.weight");
  for (int64_t token = 0; token < embeddings.rows(); ++token) {
    embeddings.row(token)[0] = token == 0 ? 1.0f : other;
  }
  for (const char* name : {"spans.0.score.weight", "spans.1.score.weight"}) {
    const Tensor& score = parameter(model, name);
    score.fill(0);
    score.data()[0] = 1;
    score.bump_version();
  }
  // The outer blocks leave channel 0 alone.
  for (const Parameter& p : model.parameters()) {
    const bool projection =
        p.name.ends_with("o_proj.weight") || p.name.ends_with("out_proj.weight");
    if (!projection) continue;
    for (int64_t c = 0; c < p.value.columns(); ++c) p.value.row(0)[c] = 0;
    p.value.bump_version();
  }
  embeddings.bump_version();
}

struct Kept {
  const char* name;
  float other;             // score of tokens other than 0
  int64_t rows_of_ninety;  // that reach the spans
};

class SubsampleTest : public testing::TestWithParam<const char*> {};

TEST_P(SubsampleTest, PromptsThatKeepNothingEverythingOrTheFirstToken) {
  const Model model(nested(GetParam()), 3);
  constexpr int64_t kTokens = 90;
  for (const Kept& kept : {Kept{"the first token", -1, 1}, Kept{"everything", 1, kTokens}}) {
    keep_only_token_0(model, kept.other);
    for (const bool with_first : {true, false}) {
      std::vector<int32_t> text = random_tokens(kTokens, 60, 1);
      for (int32_t& token : text) ++token;  // 1 ... 60
      if (with_first) text[0] = 0;
      SequenceState whole = model.new_state(), stepped = model.new_state();
      const std::vector<int64_t> in_one = {kTokens};
      const std::vector<float> once = decode(model, whole, text, in_one);
      const std::vector<float> ones = decode(model, stepped, text, equal_steps(kTokens, 1));
      const int64_t expected = kept.other > 0 || with_first ? kept.rows_of_ninety : 0;
      for (const int64_t span : {0, 1}) {
        EXPECT_EQ(whole.rows(span), expected) << kept.name << ", span " << span;
        EXPECT_EQ(stepped.rows(span), expected) << kept.name << ", span " << span;
      }
      // As the laws of whole models have it for long pieces in f32.
      EXPECT_LE(testing_support::relative_difference(once, ones), 3e-5) << kept.name;
      SequenceState shorter = stepped;
      shorter.truncate(kTokens - 7);
      const auto rest = std::span(text).last(7);
      EXPECT_EQ(bit_difference(decode(model, shorter, rest, equal_steps(7, 7)),
                               std::span(ones).last(7 * 61)),
                "")
          << kept.name;
      std::string saved = stepped.save();
      SequenceState loaded =
          SequenceState::load(std::as_bytes(std::span(saved)), model.layout(), "test");
      EXPECT_EQ(loaded.save(), saved);
    }
  }
}

// A span that keeps nothing leaves what comes before it and after it.
TEST_P(SubsampleTest, AnEmptySpanIsSkipped) {
  const Model model(nested(GetParam()), 3);
  keep_only_token_0(model, -1);
  std::vector<int32_t> text = random_tokens(40, 60, 2);
  for (int32_t& token : text) ++token;
  std::vector<SpanTrace> trace;
  ForwardObserver observer;
  observer.on_span = [&](const SpanTrace& span) { trace.push_back(span); };
  SequenceState state = model.new_state();
  model.forward({}, continue_sequence(state, text), observer);
  ASSERT_EQ(trace.size(), 2u);
  EXPECT_EQ(trace[0].rows.size(), 40u);
  EXPECT_TRUE(trace[1].rows.empty()) << "nothing reaches the inner span";
  EXPECT_EQ(state.bytes(0), 0);
  EXPECT_EQ(state.bytes(1), 0);
  EXPECT_GT(state.bytes(-1), 0);
}

std::string mixer_name(const testing::TestParamInfo<const char*>& test) {
  constexpr const char* kNames[] = {"attention", "mamba", "gated_deltanet"};
  return kNames[test.index];
}
INSTANTIATE_TEST_SUITE_P(Mixers, SubsampleTest, testing::Values(kAttention, kMamba, kDeltaNet),
                         mixer_name);

TEST(Subsample, TrainingKeepsTheConfiguredShareWhateverTheScores) {
  const Model model(nested(kAttention, 0.5), 4);
  const auto text = random_tokens(64, 61, 5);
  Tape tape;
  Context context;
  context.tape = &tape;
  context.training_step = 0;
  std::vector<SpanTrace> trace;
  ForwardObserver observer;
  observer.on_span = [&](const SpanTrace& span) { trace.push_back(span); };
  model.forward(context, fresh_segments(text, 32), observer);
  ASSERT_EQ(trace.size(), 2u);
  EXPECT_EQ(trace[0].rows.size(), 64u);
  EXPECT_EQ(trace[1].rows.size(), 32u);
}

// All scores far below 0: no gradient of the loss comes back through the clamp.
TEST(Subsample, TheBiasOfTheScoreComesBackFromWhereTheLossHasNoGradient) {
  ModelConfig config = nested(kAttention);
  config.subsample.score_bias = true;
  const Model model(config, 4);
  for (const char* name : {"spans.0.score.bias", "spans.1.score.bias"}) {
    parameter(model, name).fill(-100);
  }
  const auto text = random_tokens(64, 61, 5);
  Tape tape;
  Context context;
  context.tape = &tape;
  context.training_step = 0;
  const Tensor hidden = model.forward(context, fresh_segments(text, 32));
  model.cross_entropy(context, hidden, text, 1, 0);
  tape.run_backward();
  for (const std::string span : {"spans.0.", "spans.1."}) {
    // Two segments, in which scores without the bias are far smaller than 1.
    EXPECT_NEAR(*parameter(model, span + "score.bias").grad().data(), -200 * 0.64 / 0.37, 3);
    for (const float g : parameter(model, span + "score.weight").grad().values()) EXPECT_EQ(g, 0);
  }
}

// Over the schedule the bypass scale's lower limit falls from 0.9 to 0.2; it starts at 0.5.
TEST(Subsample, BypassScaleIsLimitedBySchedule) {
  ModelConfig config = nested(kAttention);
  config.subsample.bypass_steps = 100;
  const Model model(config, 6);
  const auto text = random_tokens(64, 61, 5);
  const auto hidden_at = [&](std::optional<int64_t> step) {
    Tape tape;
    Context context;
    context.tape = &tape;
    context.training_step = step;
    const Tensor hidden = model.forward(context, fresh_segments(text, 64));
    return std::vector<float>(hidden.values().begin(), hidden.values().end());
  };
  // Steps that agree on which way the penalties are paired; 90 and 120 limit to below 0.5.
  const std::vector<float> unlimited = hidden_at({});
  int equal = 0, different = 0;
  for (const int64_t step : {0, 1, 2, 3, 4, 5, 6, 7}) {
    different += hidden_at(step) != unlimited;
  }
  for (const int64_t step : {90, 91, 92, 93, 94, 95, 96, 97}) equal += hidden_at(step) == unlimited;
  EXPECT_EQ(different, 8) << "early the limit is above the scale";
  EXPECT_GT(equal, 0) << "late it is below, and some steps pair as the plain form does";
}

TEST(Subsample, ConfigurationsAreChecked) {
  const std::string blocks = fmt::format(R"(, "blocks": {{"b": {}}})", kAttention);
  const auto refused = [&](const std::string& body, const std::string& expected) {
    try {
      model_config(body + blocks);
      ADD_FAILURE() << body << " was accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
    }
  };
  refused(R"("pattern": "b(b)b")", "subsample");
  refused(R"("pattern": "2b", "subsample": {"keep": 0.5})", "no span in parentheses");
  refused(R"("pattern": "b(b)b", "subsample": {})", "keep");
  refused(R"("pattern": "b(b)b", "subsample": {"keep": 0})", "not a share");
  refused(R"("pattern": "b(b)b", "subsample": {"keep": 1.5})", "not a share");
  refused(R"("pattern": "b(b)b", "subsample": {"keep": [0.5, 0.5]})", "2 shares for 1 span");
  refused(R"("pattern": "b(b)b", "subsample": {"keep": ["a"]})", "not a number");
  refused(R"("pattern": "b(b)b", "subsample": {"keep": 0.5, "kept": 1})", "kept");
}

TEST(Subsample, CostsFollowTheShares) {
  const Model model(nested(kAttention, 0.5), 7);
  const std::vector<SpanCost> half = model.span_costs(1000);
  ASSERT_EQ(half.size(), 3u);
  EXPECT_EQ(half[0].blocks, 2);
  EXPECT_EQ(half[1].blocks, 2);
  EXPECT_EQ(half[2].blocks, 1);
  EXPECT_DOUBLE_EQ(half[2].share, 0.25);
  // Products cost a token of the span each as much as outside it, attention in proportion to the
  // shorter context too.
  EXPECT_NEAR(half[1].cost.matmul, 0.5 * half[0].cost.matmul, 1e-6 * half[0].cost.matmul);
  EXPECT_NEAR(half[1].cost.sequence, 0.25 * half[0].cost.sequence, 1e-6 * half[0].cost.sequence);
  const std::vector<double> none = {0, 0};
  EXPECT_EQ(model.span_costs(1000, none)[1].state_bytes, 0);
  EXPECT_THROW(model.span_costs(1000, std::vector<double>{1}), Error);
}

}  // namespace
}  // namespace pronghorn
