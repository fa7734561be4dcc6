// Sequences over several ranks: the forward and the gradients of one rank, the bytes that formulas
// say, and errors that name the layer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/files.h"
#include "ops/exchange.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/sharded_models.h"
#include "support/thread_ranks.h"
#include "tensor/sequence_shards.h"
#include "train/evaluate.h"
#include "train/tasks.h"
#include "train/tiny.h"
#include "train/train_step.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::config_with;
using testing_support::error_of;
using testing_support::random_tokens;
using testing_support::relative_difference;
using testing_support::sharded_cases;
using testing_support::ShardedCase;
using testing_support::ThreadRanks;
using testing_train::tiny_task;

constexpr int64_t kVocabulary = testing_support::kShardedVocabulary;
// Multiples of no number of pieces, past tiles of 64 keys and chunks of 64 tokens.
constexpr int64_t kLength = 141, kSegments = 2;

using Lengths = std::vector<int64_t>;  // of the sequences of a batch

struct Pass {
  double loss = 0;
  std::vector<float> hidden;                          // of all rows
  std::vector<std::vector<float>> gradients;          // of each parameter, added up over the ranks
  int64_t heads = 0, keys = 0, states = 0, rows = 0;  // bytes of the forward, of all ranks
};

void add_to(std::vector<std::vector<float>>& sums, const Model& model) {
  sums.resize(model.parameters().size());
  for (size_t i = 0; i < sums.size(); ++i) {
    const Parameter& parameter = model.parameters()[i];
    sums[i].resize(static_cast<size_t>(parameter.size()));
    if (!parameter.value.has_grad()) continue;
    const Tensor gradient = parameter.value.grad().clone();
    for (size_t k = 0; k < sums[i].size(); ++k) sums[i][k] += gradient.values()[k];
  }
}

// A forward, and with a tape its gradients, on so many ranks.
Pass pass_on(int64_t count, SequenceParallel kind, const ModelConfig& config, bool taped,
             const Lengths& lengths = Lengths(kSegments, kLength)) {
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  const std::vector<int32_t> tokens = random_tokens(rows, kVocabulary, 1);
  const std::vector<int32_t> targets = random_tokens(rows, kVocabulary, 2);
  Batch whole;
  for (const int64_t length : lengths) {
    add_fresh_segment(whole, std::span(tokens).subspan(static_cast<size_t>(whole.rows()),
                                                       static_cast<size_t>(length)));
  }
  const int64_t width = config.hidden_size;
  Pass pass;
  pass.hidden.resize(tokens.size() * static_cast<size_t>(width));
  std::vector<std::vector<std::vector<float>>> gradients(static_cast<size_t>(count));
  std::vector<Pass> parts(static_cast<size_t>(count));
  ThreadRanks::run(count, [&](Ranks& ranks) {
    Pass& own = parts[static_cast<size_t>(ranks.rank())];
    const Model model(config, 1);
    const SequenceShards shards(ranks, kind, whole);
    Tape tape;
    Context context;
    context.tape = taped ? &tape : nullptr;
    const bool alone = kind == SequenceParallel::none;
    const Tensor hidden = model.forward(context, alone ? CheckedBatch(whole) : shards.local());
    own.heads = ranks.bytes_sent_as(kSentHeads);
    own.keys = ranks.bytes_sent_as(kSentKeys);
    own.states = ranks.bytes_sent_as(kSentStates);
    own.rows = ranks.bytes_sent_as(kSentRows);
    const PooledVector<float> values = hidden.read();
    for (int64_t i = 0; i < hidden.rows(); ++i) {
      const int64_t row = alone ? i : (*shards.rows(ranks.rank()))[static_cast<size_t>(i)];
      std::copy_n(values.begin() + i * width, width, pass.hidden.begin() + row * width);
    }
    const double scale = 1 / static_cast<double>(tokens.size());
    own.loss =
        scale *
        model.cross_entropy(context, hidden, alone ? targets : shards.part_of(targets), scale, 0)
            .nll;
    tape.run_backward();
    if (taped) add_to(gradients[static_cast<size_t>(ranks.rank())], model);
  });
  for (const Pass& part : parts) {
    pass.loss += part.loss;
    pass.heads += part.heads;
    pass.keys += part.keys;
    pass.states += part.states;
    pass.rows += part.rows;
  }
  if (taped) {
    pass.gradients = gradients.front();
    for (size_t r = 1; r < gradients.size(); ++r) {
      for (size_t i = 0; i < pass.gradients.size(); ++i) {
        for (size_t k = 0; k < pass.gradients[i].size(); ++k) {
          pass.gradients[i][k] += gradients[r][i][k];
        }
      }
    }
  }
  return pass;
}

// Largest difference of two gradients, as a share of the largest number of the one expected, or of
// `least` if that is more: some gradients are 0 but for rounding.
double gradient_difference(std::span<const float> actual, std::span<const float> expected,
                           double least) {
  double difference = 0, largest = least;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(actual[i])) return std::numeric_limits<double>::infinity();
    difference = std::max(difference, std::fabs(double{actual[i]} - double{expected[i]}));
    largest = std::max(largest, std::fabs(double{expected[i]}));
  }
  return difference / largest;
}

void expect_same(const Pass& several, const Pass& one, const Model& model,
                 const std::string& place) {
  // f32 sums in another order, through two blocks.
  EXPECT_LT(relative_difference(several.hidden, one.hidden), 1e-4) << place;
  EXPECT_NEAR(several.loss, one.loss, 1e-5 * one.loss) << place;
  double largest = 0;
  for (const std::vector<float>& gradient : one.gradients) {
    for (const float value : gradient) largest = std::max(largest, std::fabs(double{value}));
  }
  ASSERT_EQ(several.gradients.size(), one.gradients.size()) << place;
  for (size_t i = 0; i < one.gradients.size(); ++i) {
    // The same, and sums over rows, of which some nearly cancel.
    EXPECT_LT(gradient_difference(several.gradients[i], one.gradients[i], 1e-3 * largest), 1e-3)
        << place << " " << model.parameters()[i].name;
  }
}

class SequenceParallelTest : public testing::TestWithParam<ShardedCase> {};

TEST_P(SequenceParallelTest, UlyssesHasTheBitsOfOneRankWithoutATape) {
  const ModelConfig config = config_with(GetParam().mixer, GetParam().more);
  const Pass one = pass_on(1, SequenceParallel::none, config, false);
  for (const int64_t ranks : {2, 4}) {
    const Pass several = pass_on(ranks, SequenceParallel::ulysses, config, false);
    EXPECT_EQ(bit_difference(several.hidden, one.hidden), "") << ranks;
  }
}

TEST_P(SequenceParallelTest, SeveralRanksHaveTheGradientsOfOne) {
  const ModelConfig config = config_with(GetParam().mixer, GetParam().more);
  const Model model(config, 1);
  const Pass one = pass_on(1, SequenceParallel::none, config, true);
  for (const auto kind : {SequenceParallel::ulysses, SequenceParallel::ring}) {
    if (kind == SequenceParallel::ring && !GetParam().ring) continue;
    // A ring takes any number.
    for (const int64_t ranks : {2, kind == SequenceParallel::ring ? 3 : 4}) {
      expect_same(pass_on(ranks, kind, config, true), one, model,
                  fmt::format("{} on {}", name_of(kind), ranks));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Mixers, SequenceParallelTest, testing::ValuesIn(sharded_cases()),
                         [](const auto& test) { return test.param.name; });

TEST(SequenceParallel, PiecesCanBeShorterThanAConvolution) {
  // On 4 ranks pieces of one row and of two: a convolution of 4 taps looks back over several.
  const Lengths lengths = {8, 11, 13};
  for (const char* mixer :
       {R"({"type": "mamba2", "heads": 4, "state": 10})", R"({"type": "mamba", "state": 5})",
        R"({"type": "attention", "heads": 4, "window": 5, "rope": {}})"}) {
    const ModelConfig config = config_with(mixer);
    const Model model(config, 1);
    const Pass one = pass_on(1, SequenceParallel::none, config, true, lengths);
    for (const auto kind : {SequenceParallel::ulysses, SequenceParallel::ring}) {
      expect_same(pass_on(4, kind, config, true, lengths), one, model,
                  fmt::format("{} {}", name_of(kind), mixer));
    }
  }
}

TEST(SequenceParallel, SendsWhatTheFormulasSay) {
  constexpr double kBlocks = 2, kNumber = sizeof(float);
  constexpr double kRows = kLength * kSegments;
  const double heads = 8, kv_heads = 4, head_dim = 6;
  const ModelConfig attention =
      config_with(R"({"type": "attention", "heads": 8, "kv_heads": 4, "head_dim": 6, "rope": {}})");
  const ModelConfig mamba2 = config_with(R"({"type": "mamba2", "heads": 4, "state": 10})");
  for (const int64_t ranks : {2, 4}) {
    const auto n = static_cast<double>(ranks);
    const auto of_heads =
        static_cast<double>(pass_on(ranks, SequenceParallel::ulysses, attention, false).heads);
    const double by_heads =
        (n - 1) / n * kRows * (2 * heads + 2 * kv_heads) * head_dim * kBlocks * kNumber;
    EXPECT_NEAR(of_heads, by_heads, 0.05 * by_heads) << ranks;
    const auto of_keys =
        static_cast<double>(pass_on(ranks, SequenceParallel::ring, attention, false).keys);
    const double around = (n - 1) * kRows * 2 * kv_heads * head_dim * kBlocks * kNumber;
    EXPECT_NEAR(of_keys, around, 0.05 * around) << ranks;
    // Heads of 2 x 24 / 4 columns; x, B and C go through a convolution of 4 taps.
    const Pass handed = pass_on(ranks, SequenceParallel::ring, mamba2, false);
    const double ends = (2 * n - 2) * kSegments * kBlocks * kNumber;
    EXPECT_NEAR(static_cast<double>(handed.states), ends * 4 * 10 * 12, 0.05 * ends * 480) << ranks;
    EXPECT_NEAR(static_cast<double>(handed.rows), ends * 3 * (48 + 20), 0.05 * ends * 204) << ranks;
    EXPECT_EQ(handed.heads + handed.keys, 0);
  }
}

TEST(SequenceParallel, ErrorsSayWhichLayerAndWhatWorks) {
  const auto said = [](const std::string& mixer, SequenceParallel kind) {
    std::string message;
    ThreadRanks::run(2, [&](Ranks& ranks) {
      const Model model(config_with(mixer), 1);
      const std::vector<int32_t> tokens = random_tokens(40, kVocabulary, 1);
      const SequenceShards shards(ranks, kind, fresh_segments(tokens, 40));
      const std::string own = error_of([&] { model.forward({}, shards.local()); });
      if (ranks.is_root()) message = own;
    });
    return message;
  };
  const std::string three = R"({"type": "attention", "heads": 3})";
  EXPECT_THAT(said(three, SequenceParallel::ulysses),
              testing::AllOf(HasSubstr("layers.0"), HasSubstr("3 heads"), HasSubstr("ring")));
  const std::string rg_lru = R"({"type": "rg_lru", "gate_blocks": 2})";
  EXPECT_THAT(said(rg_lru, SequenceParallel::ring),
              testing::AllOf(HasSubstr("layers.0"), HasSubstr("--sequence-parallel ulysses")));
  const std::string rwkv7 = R"({"type": "rwkv7", "heads": 2})";
  EXPECT_THAT(said(rwkv7, SequenceParallel::ulysses),
              testing::AllOf(HasSubstr("layers.0"), HasSubstr("leave out")));
  ThreadRanks::run(2, [&](Ranks& ranks) {
    const std::vector<int32_t> tokens = {1, 2, 3};
    EXPECT_THAT(error_of([&] {
                  const SequenceShards shards(ranks, SequenceParallel::ring,
                                              fresh_segments(tokens, 3));
                }),
                HasSubstr("a sequence of 3 tokens over 2 ranks"));
  });
}

TEST(SequenceParallel, TrainsAsOneRankDoes) {
  const ModelConfig config = config_with(R"({"type": "gated_deltanet", "heads": 4, "head_dim": 6})",
                                         R"(, "mtp": {"heads": 1})");
  const auto losses_on = [&](int64_t count, SequenceParallel kind) {
    std::vector<double> losses;
    ThreadRanks::run(count, [&](Ranks& ranks) {
      TrainConfig settings;
      settings.batch_tokens = 256;
      settings.micro_batch_tokens = 64;
      settings.gradient_groups = 2;
      settings.sequence_parallel = kind;
      settings.precision = Precision::f32;
      const Model model(config, 1);
      const auto source = make_task(tiny_task("mqar", 32, kVocabulary, 4));
      TrainingState state(model, ranks);
      for (int64_t step = 0; step < 3; ++step) {
        const double loss = train_step(model, settings, *source, state, 0.01).loss;
        if (ranks.is_root()) losses.push_back(loss);
      }
    });
    return losses;
  };
  const std::vector<double> one = losses_on(1, SequenceParallel::none);
  for (const auto kind : {SequenceParallel::ulysses, SequenceParallel::ring}) {
    // The losses after steps whose gradients were added up in another order.
    EXPECT_THAT(losses_on(2, kind), testing::Pointwise(testing::DoubleNear(1e-3), one))
        << name_of(kind);
  }
}

// Five sequences a step, in groups of two and of three.
TrainConfig settings_of_teams(SequenceParallel kind, int64_t together) {
  TrainConfig settings;
  settings.batch_tokens = 160;
  settings.micro_batch_tokens = 32;
  settings.gradient_groups = 2;
  settings.sequence_parallel = kind;
  settings.sequence_parallel_ranks = together;
  settings.precision = Precision::f32;
  return settings;
}

// The bytes of the state after steps on so many ranks, of which `together` share a sequence, that
// go on from `before` if there is one; and the losses.
struct TeamRun {
  std::string state;
  std::vector<double> losses;
};

TeamRun train_teams(int64_t count, SequenceParallel kind, int64_t together, int64_t steps,
                    const std::string& before = {}) {
  const testing_support::Folder folder;
  const ModelConfig config = config_with(R"({"type": "mamba2", "heads": 4, "state": 10})");
  if (!before.empty()) write_file(folder / "state", before);
  TeamRun run;
  ThreadRanks::run(count, [&](Ranks& ranks) {
    const Model model(config, 1);
    const auto source = make_task(tiny_task("mqar", 32, kVocabulary, 4));
    TrainingState state(model, ranks);
    if (!before.empty()) state.load(folder / "state", model, {{"test", 1}});
    wait_for_all(ranks);
    for (int64_t step = 0; step < steps; ++step) {
      const double loss =
          train_step(model, settings_of_teams(kind, together), *source, state, 0.01).loss;
      if (ranks.is_root()) run.losses.push_back(loss);
    }
    state.save(folder / "state", model, {{"test", 1}});
  });
  run.state = read_file(folder / "state");
  return run;
}

TEST(SequenceParallel, TeamsOfRanksTrainToTheBitsOfOneTeam) {
  for (const auto kind : {SequenceParallel::ulysses, SequenceParallel::ring}) {
    const TeamRun one = train_teams(2, kind, 2, 3);
    const TeamRun all = train_teams(2, kind, 0, 3);  // all ranks are a team
    const TeamRun two = train_teams(4, kind, 2, 3);
    EXPECT_TRUE(all.state == one.state) << name_of(kind);
    EXPECT_TRUE(two.state == one.state) << name_of(kind);
    EXPECT_EQ(two.losses, one.losses) << name_of(kind);
    // A run goes on with another number of teams, to the same bits.
    const TeamRun begun = train_teams(4, kind, 2, 1);
    const TeamRun ended = train_teams(2, kind, 2, 2, begun.state);
    EXPECT_TRUE(ended.state == one.state) << name_of(kind);
    // And with teams of another size, within rounding of the gradients.
    const TeamRun wider = train_teams(4, kind, 4, 2, begun.state);
    EXPECT_THAT(wider.losses, testing::Pointwise(testing::DoubleNear(1e-3), ended.losses))
        << name_of(kind);
  }
  // Teams of one rank share nothing: the bits of plain groups of sequences.
  EXPECT_TRUE(train_teams(2, SequenceParallel::ring, 1, 2).state ==
              train_teams(1, SequenceParallel::none, 0, 2).state);
}

TEST(SequenceParallel, TeamsMustFitTheRanksAndTheGroups) {
  ThreadRanks::run(4, [&](Ranks& ranks) {
    const Model model(config_with(R"({"type": "mamba2", "heads": 4, "state": 10})"), 1);
    const auto source = make_task(tiny_task("mqar", 32, kVocabulary, 4));
    TrainingState state(model, ranks);
    const auto said = [&](int64_t together, int64_t groups) {
      TrainConfig settings = settings_of_teams(SequenceParallel::ring, together);
      settings.gradient_groups = groups;
      return error_of([&] { train_step(model, settings, *source, state, 0.01); });
    };
    EXPECT_THAT(said(3, 2), HasSubstr("sequence_parallel_ranks: 3 on 4 ranks"));
    EXPECT_THAT(said(2, 3), HasSubstr("gradient_groups: 3 on 2 groups of 2 ranks"));
    EXPECT_THAT(said(1, 2), HasSubstr("gradient_groups: 2 on 4 ranks"));
  });
}

TEST(SequenceParallel, ScoresATextAsOneRankDoes) {
  const ModelConfig config = config_with(R"({"type": "mamba2", "heads": 4, "state": 10})");
  const std::vector<int32_t> tokens = random_tokens(203, kVocabulary, 3);
  const Model alone(config, 1);
  const TextScore one = evaluate_tokens(alone, Precision::f32, tokens, 100);
  for (const auto kind : {SequenceParallel::ulysses, SequenceParallel::ring}) {
    ThreadRanks::run(2, [&](Ranks& ranks) {
      const Model model(config, 1);
      // The last window has two tokens, too few for two ranks.
      const TextScore score =
          evaluate_tokens(model, Precision::f32, tokens, 100, {}, {}, 0, {&ranks, kind});
      EXPECT_EQ(score.tokens, one.tokens);
      EXPECT_NEAR(score.nll, one.nll, 1e-5 * one.nll);  // sums in another order
    });
  }
}

}  // namespace
}  // namespace pronghorn
