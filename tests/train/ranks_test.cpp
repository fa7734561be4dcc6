// Several ranks train to the bits of one, each with its share of the optimiser's state.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "base/files.h"
#include "formats/json.h"
#include "model/config.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/thread_ranks.h"
#include "support/tiny_models.h"
#include "train/tasks.h"
#include "train/tiny.h"
#include "train/trainer.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::ThreadRanks;
using testing_train::tiny_task;

// Attention, a recurrence and experts, of which some get no row of a group; the embedding is large
// enough to be cut.
ModelConfig config_with_experts() {
  const nlohmann::json config = parse_json(R"({"model_type": "pronghorn", "hidden_size": 80,
    "vocab_size": 256, "pattern": "aem", "initializer_range": 0.1, "blocks": {
      "a": {"mixer": {"type": "attention", "heads": 2}, "ffn": {"type": "swiglu", "size": 32}},
      "e": {"mixer": {"type": "attention", "heads": 2},
            "ffn": {"type": "moe", "experts": 16, "top_k": 1, "size": 8, "scores": "sigmoid",
                    "correction": true}},
      "m": {"mixer": {"type": "mamba2", "heads": 2, "state": 8}}}})",
                                           "test");
  return read_pronghorn_config(ConfigReader(config, "test"));
}

TrainConfig settings(int64_t groups) {
  TrainConfig config;
  config.batch_tokens = 256;
  config.micro_batch_tokens = 32;
  config.gradient_groups = groups;
  config.learning_rate = 0.01;
  return config;
}

struct Outcome {
  std::vector<float> weights;
  std::vector<double> losses, norms;
  std::string state;  // the bytes of its file
};

// A task of 16 tokens a sequence: 16 sequences a step.
std::unique_ptr<DataSource> task() { return make_task(tiny_task("mqar", 16, 256, 2)); }

Outcome train_on(int64_t ranks, int64_t groups, int64_t steps,
                 std::vector<int64_t>* sent = nullptr) {
  const Folder folder;
  Outcome outcome;
  const std::vector<int64_t> bytes = ThreadRanks::run(ranks, [&](Ranks& all) {
    const Model model(config_with_experts(), 1);
    const auto source = task();
    TrainingState state(model, all);
    std::vector<double> losses, norms;
    for (int64_t step = 0; step < steps; ++step) {
      const StepResult result = train_step(model, settings(groups), *source, state, 0.01);
      losses.push_back(result.loss);
      norms.push_back(result.gradient_norm);
    }
    state.save(folder / "state", model, {{"test", 1}});
    if (!all.is_root()) return;
    outcome.losses = losses;
    outcome.norms = norms;
    for (const Parameter& parameter : model.parameters()) {
      const auto values = parameter.value.values();
      outcome.weights.insert(outcome.weights.end(), values.begin(), values.end());
    }
  });
  if (sent != nullptr) *sent = bytes;
  outcome.state = read_file(folder / "state");
  return outcome;
}

TEST(Ranks, OneAloneHasItsOwnValues) {
  Ranks& one = one_rank();
  const std::vector<int32_t> mine = {3, 4};
  EXPECT_EQ(gather<int32_t>(one, mine), mine);
  EXPECT_EQ(value_of_root(one, 7), 7);
  EXPECT_TRUE(on_any(one, true));
  EXPECT_FALSE(on_any(one, false));
  EXPECT_EQ(one.bytes_sent(), 0);
}

TEST(Ranks, SomeOfThemAreRanksOfTheirOwn) {
  const std::vector<int64_t> sent = ThreadRanks::run(5, [](Ranks& all) {
    if (all.is_root()) return;  // in no group
    // 1 and 2, 3 and 4: groups that exchange differently often.
    const bool first = all.rank() < 3;
    RankGroup group(all, first ? 1 : 3, 2);
    EXPECT_EQ(group.count(), 2);
    EXPECT_EQ(group.rank(), (all.rank() - 1) % 2);
    const auto number = static_cast<int32_t>(10 * all.rank());
    for (int i = 0; i < (first ? 1 : 3); ++i) {
      EXPECT_THAT(gather<int32_t>(group, {&number, 1}),
                  first ? testing::ElementsAre(10, 20) : testing::ElementsAre(30, 40));
    }
    EXPECT_EQ(group.bytes_sent(), all.bytes_sent());
  });
  EXPECT_THAT(sent, testing::ElementsAre(0, 4, 4, 12, 12));
  EXPECT_THAT(error_of([] { RankGroup(one_rank(), 0, 2); }), HasSubstr("from 0 to 1"));
}

TEST(Ranks, OwnershipCoversEachParameterOnceAndEvenly) {
  const Model model(config_with_experts(), 1);
  for (const int64_t ranks : {1, 2, 3, 5, 8}) {
    const Ownership ownership(model.trained(), ranks);
    for (size_t i = 0; i < model.trained().size(); ++i) {
      std::map<int64_t, int64_t> parts;
      for (int64_t r = 0; r < ranks; ++r) {
        const Part part = ownership.part(i, r);
        if (part.count > 0) parts[part.begin] = part.count;
      }
      int64_t covered = 0;
      for (const auto& [begin, count] : parts) {
        EXPECT_EQ(begin, covered) << model.trained()[i].name;
        EXPECT_EQ(begin % Ownership::kBlock, 0);
        covered += count;
      }
      EXPECT_EQ(covered, ownership.size(i)) << model.trained()[i].name;
    }
  }
  // The embedding has 1.25 blocks.
  EXPECT_GT(Ownership(model.trained(), 2).part(0, 0).count, 0);
  EXPECT_GT(Ownership(model.trained(), 2).part(0, 1).count, 0);
}

TEST(Ranks, AnyNumberThatDividesTheGroupsTrainsToTheSameBits) {
  const Outcome one = train_on(1, 6, 4);
  for (const int64_t ranks : {2, 3, 6}) {
    const Outcome several = train_on(ranks, 6, 4);
    EXPECT_TRUE(several.weights == one.weights) << ranks;
    EXPECT_TRUE(several.state == one.state) << ranks;
    EXPECT_EQ(several.losses, one.losses);
    EXPECT_EQ(several.norms, one.norms);
  }
}

TEST(Ranks, GroupsGiveTheGradientOfTheWhole) {
  const Outcome whole = train_on(1, 1, 1), groups = train_on(1, 4, 1);
  // Sums in another order.
  EXPECT_NEAR(groups.losses[0], whole.losses[0], 1e-5 * whole.losses[0]);
  EXPECT_NEAR(groups.norms[0], whole.norms[0], 1e-3 * whole.norms[0]);
}

TEST(Ranks, ARunGoesOnWithAnotherNumberOfThem) {
  const Outcome whole = train_on(1, 4, 4);
  const Folder folder;
  for (const auto& [ranks, steps] : {std::pair<int64_t, int64_t>{4, 1}, {1, 2}, {2, 1}}) {
    ThreadRanks::run(ranks, [&, n = steps](Ranks& all) {
      const Model model(config_with_experts(), 1);
      const auto source = task();
      TrainingState state(model, all);
      if (std::filesystem::exists(folder / "state")) {
        state.load(folder / "state", model, {{"test", 1}});
      }
      wait_for_all(all);
      for (int64_t step = 0; step < n; ++step) {
        train_step(model, settings(4), *source, state, 0.01);
      }
      state.save(folder / "state", model, {{"test", 1}});
    });
  }
  EXPECT_TRUE(read_file(folder / "state") == whole.state);
}

TEST(Ranks, SendWhatTheFormulaSays) {
  std::vector<int64_t> sent;
  constexpr int64_t kSteps = 3;
  const Model model(config_with_experts(), 1);
  for (const int64_t ranks : {2, 4}) {
    const Outcome outcome = train_on(ranks, ranks, kSteps, &sent);
    const int64_t total = std::accumulate(sent.begin(), sent.end(), int64_t{0});
    int64_t numbers = 0;
    for (const Parameter& parameter : model.trained()) numbers += parameter.value.size();
    // A step: gradients to their owners and parameters from them; at the end two moments to the
    // first rank from the others.
    const double expected = 4.0 * static_cast<double>(numbers) *
                            (2.0 * static_cast<double>(ranks - 1) * kSteps +
                             2.0 * static_cast<double>(ranks - 1) / static_cast<double>(ranks));
    // Experts without rows are not sent; sums of blocks, flags and reports are.
    EXPECT_NEAR(static_cast<double>(total), expected, 0.05 * expected) << ranks;
  }
}

TEST(Ranks, GroupsMustFitThemAndTheStep) {
  const Model model(config_with_experts(), 1);
  const auto source = task();
  TrainingState state(model);
  EXPECT_THAT(error_of([&] { train_step(model, settings(17), *source, state, 0.01); }),
              HasSubstr("17 in a step of 16 sequences"));
  ThreadRanks::run(2, [&](Ranks& all) {
    const Model own(config_with_experts(), 1);
    const auto own_source = task();
    TrainingState own_state(own, all);
    EXPECT_THAT(error_of([&] { train_step(own, settings(3), *own_source, own_state, 0.01); }),
                HasSubstr("3 on 2 ranks"));
  });
}

}  // namespace
}  // namespace pronghorn
