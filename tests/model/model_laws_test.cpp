// The laws of sequences (split, batch, rollback) for whole models of each kind of configuration: to
// the bit for steps of up to kExactStep tokens, on every instruction set, precision and number of
// threads.
#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"
#include "model/forward_run.h"
#include "ops/pointwise.h"
#include "support/machine.h"
#include "support/model_runs.h"
#include "support/steps.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing_support::bit_difference;
using testing_support::chooses_experts;
using testing_support::chooses_keys;
using testing_support::decode;
using testing_support::equal_steps;
using testing_support::InstructionSet;
using testing_support::model_config;
using testing_support::model_configs;
using testing_support::random_steps;
using testing_support::random_tokens;
using testing_support::relative_difference;
using testing_support::test_name;
using testing_support::Threads;

constexpr int kThreadCounts[] = {1, 2, 4};

// Long pieces run as chunks of matrix products: the same sums in another order. In f32 the
// differences of the operators (some 1e-6) pass through up to four blocks; measured: 3e-6.
constexpr double kLongTolerance = 3e-5;
// In bf16 a difference in the last bit of a sum can round an operand to its other neighbour, 2^-8
// away; a few such operands in a row of 24 to 60 products, through up to four blocks; measured:
// 3e-3.
constexpr double kLongToleranceBf16 = 3e-2;

class ModelLawsTest : public testing::TestWithParam<std::tuple<size_t, std::string, Precision>> {
 protected:
  ModelLawsTest()
      : instruction_set_(std::get<1>(GetParam())),
        model_(model_config(model_configs()[std::get<0>(GetParam())].second), 7) {}

  Precision precision() const { return std::get<2>(GetParam()); }
  double long_tolerance() const {
    return precision() == Precision::f32 ? kLongTolerance : kLongToleranceBf16;
  }
  std::vector<int32_t> tokens(int64_t count, uint64_t seed) const {
    return random_tokens(count, model_.config().vocab_size, seed);
  }
  std::vector<float> run(SequenceState& state, std::span<const int32_t> text,
                         const std::vector<int64_t>& steps) const {
    return decode(model_, state, text, steps, precision());
  }
  // The state after `text` in steps of up to kExactStep tokens.
  SequenceState after(std::span<const int32_t> text) const {
    SequenceState state = model_.new_state();
    run(state, text, equal_steps(static_cast<int64_t>(text.size()), kExactStep));
    return state;
  }
  // What a copy of `state` says to 30 more tokens, over the next multiple of kExactStep.
  std::vector<float> continuation(SequenceState state) const {
    return run(state, tokens(30, 99), {1, 1, 5, 16, 1, 6});
  }

  InstructionSet instruction_set_;
  Model model_;
};

TEST_P(ModelLawsTest, Split) {
  constexpr int64_t kTokens = 90;
  const std::vector<int32_t> text = tokens(kTokens, 1);
  std::vector<float> ones;
  {
    const Threads scope(1);
    SequenceState state = model_.new_state();
    ones = run(state, text, equal_steps(kTokens, 1));
  }
  Random random(2, "split");
  for (const int threads : kThreadCounts) {
    const Threads scope(threads);
    for (const auto& steps : {equal_steps(kTokens, 16), equal_steps(kTokens, 7),
                              random_steps(random, kTokens, kExactStep)}) {
      SequenceState state = model_.new_state();
      EXPECT_EQ(bit_difference(run(state, text, steps), ones), "")
          << fmt::format("steps {}, {} threads", fmt::join(steps, " "), threads);
    }
  }
}

TEST_P(ModelLawsTest, LongPieces) {
  if (precision() == Precision::bf16 && chooses_experts(model_.config())) {
    GTEST_SKIP() << "rounding turns some choices of experts, which differ as a whole";
  }
  constexpr int64_t kTokens = 150;
  if (precision() == Precision::bf16 && chooses_keys(model_.config(), kTokens)) {
    GTEST_SKIP() << "rounding turns some choices of keys, which differ as a whole";
  }
  const std::vector<int32_t> text = tokens(kTokens, 3);
  SequenceState reference = model_.new_state();
  const std::vector<float> ones = run(reference, text, equal_steps(kTokens, 1));
  const std::vector<std::vector<int64_t>> cuts = {
      {kTokens}, {64, 86}, {17, 1, 70, 62}, {3, 65, 16, 66}};
  double worst = 0;
  for (const auto& steps : cuts) {
    std::vector<float> first;
    for (const int threads : kThreadCounts) {
      if (threads > 1 && &steps != &cuts.front()) continue;
      const Threads scope(threads);
      SequenceState state = model_.new_state();
      const std::vector<float> actual = run(state, text, steps);
      const double difference = relative_difference(actual, ones);
      worst = std::max(worst, difference);
      EXPECT_LE(difference, long_tolerance()) << fmt::format("steps {}", fmt::join(steps, " "));
      if (first.empty()) first = actual;
      EXPECT_EQ(bit_difference(actual, first), "") << threads << " threads against 1";
    }
  }
  RecordProperty("largest_relative_difference", fmt::format("{:.3g}", worst));

  // After a prompt in one piece, short steps agree bit for bit again.
  SequenceState prompted = model_.new_state();
  run(prompted, text, {70});
  const auto rest = std::span(text).subspan(70);
  SequenceState one = prompted, two = prompted;
  EXPECT_EQ(bit_difference(run(one, rest, equal_steps(80, 13)), run(two, rest, equal_steps(80, 1))),
            "");
}

TEST_P(ModelLawsTest, Batch) {
  struct Sequence {
    std::vector<int32_t> before, text;
    std::vector<int64_t> steps;
  };
  Random random(4, "batch");
  std::vector<Sequence> sequences;
  for (const int64_t before : {0, 5, 16, 33, 60}) {
    const auto seed = static_cast<uint64_t>(before) + 10;
    sequences.push_back(
        {tokens(before, seed), tokens(40, seed + 100), random_steps(random, 40, kExactStep)});
  }
  std::vector<std::vector<float>> alone;
  for (const Sequence& sequence : sequences) {
    SequenceState state = after(sequence.before);
    alone.push_back(run(state, sequence.text, sequence.steps));
  }
  const auto width = static_cast<size_t>(model_.config().vocab_size);
  const std::vector<std::vector<size_t>> orders = {{0, 1, 2, 3, 4}, {3, 0, 4, 2, 1}};
  for (const int threads : kThreadCounts) {
    const Threads scope(threads);
    for (const auto& order : orders) {
      std::vector<SequenceState> states;
      for (const Sequence& sequence : sequences) states.push_back(after(sequence.before));
      std::vector<std::vector<float>> actual(sequences.size());
      std::vector<size_t> done(sequences.size());
      for (size_t round = 0; round < 40; ++round) {
        Batch batch;
        std::vector<size_t> owners;
        for (const size_t i : order) {
          const Sequence& sequence = sequences[i];
          if (round >= sequence.steps.size()) continue;
          Batch part = continue_sequence(
              states[i], std::span(sequence.text)
                             .subspan(done[i], static_cast<size_t>(sequence.steps[round])));
          part.segments[0].first_row = batch.rows();
          batch.segments.push_back(part.segments[0]);
          batch.tokens.insert(batch.tokens.end(), part.tokens.begin(), part.tokens.end());
          batch.positions.insert(batch.positions.end(), part.positions.begin(),
                                 part.positions.end());
          done[i] += part.tokens.size();
          owners.push_back(i);
        }
        if (owners.empty()) break;
        const std::vector<float> logits = testing_support::run(model_, batch, precision());
        for (size_t s = 0; s < owners.size(); ++s) {
          const auto begin = logits.begin() + batch.segments[s].first_row * int64_t(width);
          actual[owners[s]].insert(actual[owners[s]].end(), begin,
                                   begin + batch.segments[s].length * int64_t(width));
        }
      }
      for (size_t i = 0; i < sequences.size(); ++i) {
        EXPECT_EQ(bit_difference(actual[i], alone[i]), "") << fmt::format(
            "sequence {} in the order {}, {} threads", i, fmt::join(order, " "), threads);
      }
    }
  }
}

// A forward that waits between its parts while others run has the bits of one that does not; one
// that was given up has left nothing behind in what was copied before.
TEST_P(ModelLawsTest, Waiting) {
  const std::vector<int32_t> before = tokens(21, 11), text = tokens(70, 12),
                             other = tokens(200, 13);
  Context context;
  context.precision = precision();
  SequenceState whole = after(before), state = after(before), neighbour = model_.new_state();
  const std::vector<float> expected = run(whole, text, {std::ssize(text)});
  std::vector<float> heard;  // of the neighbour
  size_t spoken = 0;
  const auto advance = [&](ForwardRun& forward, size_t most) {
    size_t parts = 0;
    for (; parts < most && forward.advance(); ++parts) {
      const auto logits = run(neighbour, std::span(other).subspan(spoken++, 1), {1});
      heard.insert(heard.end(), logits.begin(), logits.end());
    }
    return parts;
  };
  const SequenceState mark = state;
  {
    const Batch batch = continue_sequence(state, text);
    const CheckedBatch checked(batch);
    ForwardRun forward(model_, context, checked);
    advance(forward, 1);
  }
  state = mark;
  const Batch batch = continue_sequence(state, text);
  const CheckedBatch checked(batch);
  ForwardRun forward(model_, context, checked);
  EXPECT_GT(advance(forward, other.size() - 1), 1u);
  const Tensor logits = model_.logits(context, forward.finish());
  EXPECT_EQ(bit_difference(logits.values(), expected), "");
  EXPECT_EQ(state.length(), whole.length());
  EXPECT_EQ(bit_difference(continuation(state), continuation(whole)), "");
  SequenceState alone = model_.new_state();
  EXPECT_EQ(bit_difference(heard, run(alone, std::span(other).first(spoken),
                                      equal_steps(static_cast<int64_t>(spoken), 1))),
            "");
}

TEST_P(ModelLawsTest, RollbackAndFork) {
  for (const int64_t length : {0, 16, 31}) {
    const std::vector<int32_t> text = tokens(length, 20);
    const std::vector<float> expected = continuation(after(text));
    SequenceState state = after(text);
    const std::string saved = state.save();
    const SequenceState mark = state;
    for (const int64_t appended : {1, 16, 40}) {
      run(state, tokens(appended, 21), {appended});
      EXPECT_EQ(mark.save(), saved) << "the mark changed while more was appended";
      state = mark;
      EXPECT_EQ(bit_difference(continuation(state), expected), "")
          << length << " tokens, " << appended << " more, rolled back";
    }
    // A fork that goes another way, in turn with this one.
    SequenceState fork = state;
    const std::vector<int32_t> other = tokens(20, 22), own = tokens(20, 23);
    for (size_t i = 0; i < 20; i += 5) {
      run(fork, std::span(other).subspan(i, 5), {5});
      run(state, std::span(own).subspan(i, 5), {2, 3});
    }
    std::vector<int32_t> whole = text;
    whole.insert(whole.end(), own.begin(), own.end());
    EXPECT_EQ(bit_difference(continuation(state), continuation(after(whole))), "")
        << length << " tokens, forked";
  }
}

TEST_P(ModelLawsTest, Truncate) {
  for (const int64_t length : {16, 33, 64}) {
    for (const int64_t back : {1, 7, 16}) {
      const std::vector<int32_t> text = tokens(length, 30);
      SequenceState state = after(text);
      state.truncate(length - back);
      EXPECT_EQ(state.length(), length - back);
      EXPECT_EQ(bit_difference(
                    continuation(state),
                    continuation(after(std::span(text).first(static_cast<size_t>(length - back))))),
                "")
          << length << " tokens truncated by " << back;
    }
  }
}

TEST_P(ModelLawsTest, Tree) {
  // Two roots, a long branch, siblings.
  const std::vector<int32_t> parents = {-1, 0, 1, 1, 3, 4, -1, 6, 5, 8, 9, 0};
  const std::vector<int32_t> nodes = tokens(static_cast<int64_t>(parents.size()), 40);
  const std::vector<std::vector<int32_t>> paths = {
      {}, {0}, {0, 1, 3, 4, 5, 8, 9, 10}, {6, 7}, {0, 11}};
  const auto width = static_cast<size_t>(model_.config().vocab_size);
  for (const int64_t length : {0, 9, 60}) {
    const SequenceState base = after(tokens(length, 41));
    SequenceState tree = base;
    Batch batch = continue_sequence(tree, nodes);
    batch.segments[0].parents = parents;
    for (size_t i = 0; i < parents.size(); ++i) {
      batch.positions[i] = parents[i] < 0 ? static_cast<int32_t>(length)
                                          : batch.positions[static_cast<size_t>(parents[i])] + 1;
    }
    const std::vector<float> logits = testing_support::run(model_, batch, precision());
    EXPECT_EQ(tree.length(), length) << "nodes count before they are committed";
    for (const auto& path : paths) {
      std::vector<int32_t> chain;
      std::vector<float> scores;
      for (const int32_t node : path) {
        chain.push_back(nodes[static_cast<size_t>(node)]);
        const auto begin = logits.begin() + node * static_cast<int64_t>(width);
        scores.insert(scores.end(), begin, begin + static_cast<int64_t>(width));
      }
      SequenceState expected = base;
      EXPECT_EQ(bit_difference(scores, run(expected, chain,
                                           equal_steps(static_cast<int64_t>(chain.size()), 1))),
                "")
          << fmt::format("nodes {} after {} tokens", fmt::join(path, " "), length);
      SequenceState kept = tree;
      kept.commit(path);
      EXPECT_EQ(kept.length(), expected.length());
      EXPECT_EQ(bit_difference(continuation(kept), continuation(expected)), "")
          << fmt::format("path {} committed after {} tokens", fmt::join(path, " "), length);
    }
  }
}

TEST_P(ModelLawsTest, SaveAndLoad) {
  for (const int64_t length : {0, 1, 16, 23, 79}) {
    const SequenceState state = after(tokens(length, 50));
    const std::string saved = state.save();
    const auto load = [&](std::string_view bytes) {
      return SequenceState::load(std::as_bytes(std::span(bytes)), model_.layout(), "test");
    };
    const SequenceState loaded = load(saved);
    EXPECT_EQ(loaded.save(), saved);
    EXPECT_EQ(bit_difference(continuation(loaded), continuation(state)), "") << length;
    std::string damaged = saved;
    damaged[saved.size() / 2] ^= 1;
    EXPECT_THROW(load(damaged), Error);
    EXPECT_THROW(load(std::string_view(saved).substr(0, saved.size() - 1)), Error);
  }
}

TEST_P(ModelLawsTest, StateIsAsLargeAsPredicted) {
  struct Case {
    int64_t length;
    DType type;
  };
  for (const auto& [length, type] :
       {Case{1, DType::f32}, {64, DType::f32}, {200, DType::f32}, {200, DType::bf16}}) {
    SequenceState state = model_.new_state(type);
    run(state, tokens(length, 60), {length});
    int64_t predicted = 0;
    for (const SpanCost& span :
         model_.span_costs(static_cast<double>(length), model_.measured_shares(state), type)) {
      EXPECT_EQ(state.bytes(span.span), span.state_bytes) << length << " tokens, " << span.span;
      predicted += span.state_bytes;
    }
    EXPECT_EQ(state.bytes(), predicted) << length << " tokens";
    if (model_.config().span_count() == 0) {
      EXPECT_EQ(predicted, model_.predicted_state_bytes(length, type));
    }
  }
}

TEST_P(ModelLawsTest, EmbeddingsMayStandInPlaceOfTokens) {
  const std::vector<int32_t> text = tokens(20, 71);
  SequenceState state = model_.new_state(), other = model_.new_state();
  const Tensor expected = model_.forward({}, continue_sequence(state, text));
  Batch batch = continue_sequence(other, text);
  const Parameter& table = model_.parameters().front();
  ASSERT_EQ(table.value.shape(), (Shape{model_.config().vocab_size, model_.config().hidden_size}));
  // They are what the first block is given, without the table's factor.
  const auto factor = static_cast<float>(model_.config().embedding_scale);
  batch.embeddings = scale({}, embedding({}, table.value, text), factor);
  batch.tokens.clear();
  const Tensor actual = model_.forward({}, batch);
  EXPECT_TRUE(std::ranges::equal(expected.values(), actual.values()));
}

TEST_P(ModelLawsTest, RefusesMalformedBatches) {
  const std::vector<int32_t> text = tokens(4, 70);
  SequenceState state = model_.new_state();
  const auto refused = [&](auto change) {
    Batch batch = continue_sequence(state, text);
    change(batch);
    EXPECT_THROW(model_.forward({}, batch), Error);
  };
  refused([](Batch& batch) { batch.tokens[1] = 61; });
  refused([](Batch& batch) { batch.tokens[1] = -1; });
  refused([](Batch& batch) { batch.tokens.pop_back(); });
  refused([](Batch& batch) { batch.segments[0].length = 3; });
  refused([](Batch& batch) { batch.segments[0].first_row = 1; });
  refused([](Batch& batch) { batch.segments[0].parents = {-1, 0}; });
  refused([](Batch& batch) { batch.segments[0].parents = {-1, 1, 0, 0}; });
  refused([](Batch& batch) { batch.positions = {0, 1, 2, 4}; });
  refused([](Batch& batch) { batch.positions = {1, 2, 3, 4}; });
  refused([](Batch& batch) { batch.tokens.clear(); });
  refused([&](Batch& batch) {
    batch.tokens.clear();
    batch.embeddings = Tensor::zeros({4, model_.config().hidden_size + 1});
  });
  refused([&](Batch& batch) {
    batch.segments[0].length = 2;
    batch.segments.push_back({&state, 2, 2, Mask::causal, {}});
  });
  EXPECT_EQ(state.length(), 0);
}

INSTANTIATE_TEST_SUITE_P(Models, ModelLawsTest,
                         testing::Combine(testing::Range<size_t>(0, model_configs().size()),
                                          testing::ValuesIn(cpu_instruction_sets()),
                                          testing::Values(Precision::f32, Precision::bf16)),
                         [](const auto& test) {
                           return test_name(
                               model_configs()[std::get<0>(test.param)].first + "__" +
                               std::get<1>(test.param) +
                               (std::get<2>(test.param) == Precision::f32 ? "__f32" : "__bf16"));
                         });

}  // namespace
}  // namespace pronghorn
