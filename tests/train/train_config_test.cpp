// Training settings: reading, writing, refusing; the shapes of the schedules.
#include "train/train_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/errors.h"
#include "train/tiny.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_support::error_of;

TrainConfig read(const nlohmann::json& json) {
  return read_train_config(ConfigReader(json, "c.json: train"));
}

TEST(TrainConfig, ReadsBackWhatItWrites) {
  const nlohmann::json all = {{"window", 96},
                              {"batch_tokens", 960},
                              {"micro_batch_tokens", 192},
                              {"learning_rate", 0.003},
                              {"final_learning_rate", 0.25},
                              {"schedule", "wsd"},
                              {"warmup", 0.01},
                              {"decay", 0.3},
                              {"weight_decay", 0.2},
                              {"beta1", 0.8},
                              {"beta2", 0.99},
                              {"epsilon", 1e-9},
                              {"clip", 0.5},
                              {"z_loss", 1e-4},
                              {"position", {{"skip", 2048}, {"chunks", 3}}},
                              {"precision", "f32"}};
  EXPECT_EQ(write_train_config(read(all)), all);
  const TrainConfig defaults;
  EXPECT_EQ(write_train_config(read(nlohmann::json::object())), write_train_config(defaults));
  // What is not given keeps the defaults at hand.
  EXPECT_EQ(
      write_train_config(read_train_config(ConfigReader(nlohmann::json::object(), "t"), read(all))),
      all);
}

// How many machines work on a run is not part of it.
TEST(TrainConfig, TeamsOfRanksAreNotWritten) {
  const TrainConfig config = read({{"sequence_parallel", "ring"}, {"sequence_parallel_ranks", 4}});
  EXPECT_EQ(config.sequence_parallel_ranks, 4);
  const nlohmann::json written = write_train_config(config);
  EXPECT_EQ(written["sequence_parallel"], "ring");
  EXPECT_FALSE(written.contains("sequence_parallel_ranks"));
  EXPECT_THAT(error_of([] {
                read({{"sequence_parallel_ranks", 4}});
              }),
              AllOf(HasSubstr("sequence_parallel_ranks"), HasSubstr("4 ranks")));
}

TEST(TrainConfig, RefusesWhatItDoesNotKnow) {
  EXPECT_THAT(
      error_of([] {
        read({{"learning_rat", 1e-3}});
      }),
      AllOf(HasSubstr("c.json: train"), HasSubstr("learning_rat"), HasSubstr("learning_rate")));
  const std::vector<std::pair<const char*, nlohmann::json>> bad = {
      {"position", 1024},
      {"position", {{"skip", 100}}},
      {"position", {{"skip", 1024}, {"chunks", 0}}},
      {"position", {{"skips", 1024}}},
      {"window", 0},
      {"window", 1.5},
      {"window", "512"},
      {"batch_tokens", -1},
      {"learning_rate", -1},
      {"schedule", "cosin"},
      {"warmup", 1.1},
      {"beta2", 1.0},
      {"precision", "fp8"},
      {"clip", -0.1},
      {"epsilon", 0},
      {"decay", -0.2},
      {"micro_batch_tokens", INT64_MAX}};
  for (const auto& [key, value] : bad) {
    EXPECT_THAT(error_of([&, k = key, v = value] {
                  read({{k, v}});
                }),
                AllOf(HasSubstr("c.json: train"), HasSubstr(key)))
        << key << " " << value;
  }
}

TEST(Schedule, Cosine) {
  TrainConfig config;
  config.learning_rate = 2;
  config.final_learning_rate = 0.1;
  config.warmup = 0.2;
  EXPECT_EQ(learning_rate_at(config, 0), 0);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 0.05), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 0.1), 1);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 0.2), 2);
  // Half-way down is the mean of both ends; the exact value at a quarter.
  EXPECT_NEAR(learning_rate_at(config, 0.6), (2 + 0.2) / 2, 1e-12);
  EXPECT_NEAR(learning_rate_at(config, 0.4), 0.2 + 1.8 * 0.5 * (1 + std::sqrt(0.5)), 1e-12);
  EXPECT_NEAR(learning_rate_at(config, 1), 0.2, 1e-12);
  EXPECT_NEAR(learning_rate_at(config, 7), 0.2, 1e-12);
  EXPECT_EQ(learning_rate_at(config, -1), 0);
  double last = 2;
  for (double progress = 0.2; progress <= 1; progress += 0.01) {
    EXPECT_LE(learning_rate_at(config, progress), last);
    last = learning_rate_at(config, progress);
  }
}

TEST(Schedule, WarmupStableDecay) {
  TrainConfig config;
  config.schedule = Schedule::wsd;
  config.learning_rate = 2;
  config.final_learning_rate = 0.1;
  config.warmup = 0.1;
  config.decay = 0.25;
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 0.05), 1);
  for (const double progress : {0.1, 0.3, 0.5, 0.75}) {
    EXPECT_EQ(learning_rate_at(config, progress), 2) << progress;
  }
  EXPECT_NEAR(learning_rate_at(config, 0.875), (2 + 0.2) / 2, 1e-12);
  EXPECT_NEAR(learning_rate_at(config, 1), 0.2, 1e-12);
}

TEST(Schedule, ExtremesStayFinite) {
  for (const Schedule schedule : {Schedule::cosine, Schedule::wsd}) {
    for (const double warmup : {0.0, 1.0}) {
      for (const double decay : {0.0, 1.0}) {
        TrainConfig config;
        config.schedule = schedule;
        config.warmup = warmup;
        config.decay = decay;
        for (const double progress : {0.0, 1e-12, 0.5, 1.0}) {
          const double rate = learning_rate_at(config, progress);
          EXPECT_TRUE(rate >= 0 && rate <= config.learning_rate)
              << warmup << " " << decay << " " << progress << ": " << rate;
        }
      }
    }
  }
}

}  // namespace
}  // namespace pronghorn
