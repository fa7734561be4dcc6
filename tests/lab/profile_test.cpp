// The profile says where all of the time went, and only that.
#include "lab/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/fork_count.h"
#include "formats/json.h"

namespace pronghorn::lab {
namespace {

// Wide enough that a run takes milliseconds.
constexpr char kModel[] = R"({"model_type": "pronghorn", "vocab_size": 300, "hidden_size": 64,
  "pattern": "aba", "blocks": {
    "a": {"mixer": {"type": "attention", "heads": 2, "rope": {}},
          "ffn": {"type": "swiglu", "size": 128}},
    "b": {"mixer": {"type": "gated_deltanet", "heads": 2},
          "ffn": {"type": "swiglu", "size": 128}}}})";

ModelConfig small_config() {
  return read_pronghorn_config(ConfigReader(parse_json(kModel, "test"), "test"));
}

BenchOptions small_bench() {
  BenchOptions options;
  options.prompt = 200;
  options.generate = 40;
  options.repeat = 3;
  options.precision = Precision::f32;
  return options;
}

double seconds_of(const Profile& profile) {
  double seconds = 0;
  for (const ProfileRow& row : profile.rows) seconds += row.seconds;
  return seconds;
}

const ProfileRow* find(const Profile& profile, std::string_view kernel, std::string_view weights) {
  const auto found = std::ranges::find_if(profile.rows, [&](const ProfileRow& row) {
    return row.kernel == kernel && row.weights == weights;
  });
  return found == profile.rows.end() ? nullptr : &*found;
}

// The whole is measured by another clock around all of it. Rows that counted a time twice (a kernel
// within a kernel, or on several threads) would sum up to more, and what is missed to less. 3%: the
// two clocks start and stop a microsecond or so apart, in runs of milliseconds.
bool adds_up(const Profile& profile) {
  const double off = std::abs(seconds_of(profile) - profile.seconds);
  return off <= 0.03 * profile.seconds + 2e-5;
}

// The first profiles that all add up, of a few: on a busy machine a run may be held up between the
// clocks. What is counted wrong is wrong in each.
template <typename Make>
std::vector<Profile> profiles_that_add_up(const Make& make) {
  std::vector<Profile> profiles;
  for (int attempt = 0; attempt < 5; ++attempt) {
    profiles = make();
    if (std::ranges::all_of(profiles, adds_up)) break;
  }
  return profiles;
}

void expect_whole(const Profile& profile) {
  EXPECT_TRUE(adds_up(profile)) << profile.what << ": " << seconds_of(profile) << " s of "
                                << profile.seconds;
  EXPECT_EQ(profile.rows.back().kernel, "everything else");
  for (const ProfileRow& row : profile.rows) EXPECT_GT(row.seconds, 0) << row.kernel;
}

TEST(Profile, OfInferenceAddsUpAndCountsCalls) {
  Model model(small_config(), 1);
  model.freeze();
  const int64_t forks_before = fork_count();
  const std::vector<Profile> profiles =
      profiles_that_add_up([&] { return profile_inference(model, small_bench()); });
  EXPECT_GE(fork_count(), forks_before);
  ASSERT_EQ(profiles.size(), 2u);
  for (const Profile& profile : profiles) {
    expect_whole(profile);
    const ProfileRow* down = find(profile, "linear_forward", "ffn.down_proj");
    ASSERT_NE(down, nullptr) << profile.what;
    EXPECT_EQ(down->kind, "product");
    // One a layer and step.
    EXPECT_EQ(down->calls, 3 * profile.steps);
    EXPECT_EQ(down->operations, 2.0 * 64 * 128 * 3 * static_cast<double>(profile.tokens));
    const ProfileRow* head = find(profile, "linear_forward", "head");
    ASSERT_NE(head, nullptr);
    EXPECT_EQ(head->calls, profile.steps);
  }
  EXPECT_NE(find(profiles[0], "attention_forward", ""), nullptr);
  EXPECT_NE(find(profiles[0], "outer_product_forward", ""), nullptr);
  EXPECT_NE(find(profiles[1], "outer_product_step", ""), nullptr);
  const ProfileRow* attention = find(profiles[1], "attention_forward_exact", "");
  ASSERT_NE(attention, nullptr);
  // Token t, from 200 on, sees t + 1 keys, in two layers: a product of 64 with each key, and one
  // with each value.
  double keys = 0;
  for (int64_t t = 200; t < 240; ++t) keys += static_cast<double>(t + 1);
  EXPECT_EQ(attention->operations, 2 * keys * 2 * (64 + 64));
}

TEST(Profile, OfTrainingAddsUpAndHasTheGradients) {
  const Model model(small_config(), 1);
  TrainConfig config;
  config.window = 100;
  config.batch_tokens = 400;
  config.micro_batch_tokens = 200;
  const Profile profile = profiles_that_add_up([&] {
                            return std::vector<Profile>{profile_training(model, config, 3)};
                          }).front();
  expect_whole(profile);
  EXPECT_EQ(profile.tokens, 400);
  for (const char* kernel : {"linear_backward_input", "linear_backward_weight"}) {
    const ProfileRow* down = find(profile, kernel, "ffn.down_proj");
    ASSERT_NE(down, nullptr) << kernel;
    EXPECT_EQ(down->calls, 3 * 2);  // layers, micro-batches
    EXPECT_EQ(down->operations, 2.0 * 64 * 128 * 3 * 400) << kernel;
  }
  for (const char* kernel : {"attention_backward", "outer_product_backward", "norm_backward",
                             "cross_entropy", "adamw", "sums_of_squares"}) {
    EXPECT_NE(find(profile, kernel, ""), nullptr) << kernel;
  }
}

TEST(Profile, LeavesNothingBehind) {
  Backend& before = backend();
  Memory& memory_before = memory();
  Model model(small_config(), 1);
  model.freeze();
  profile_inference(model, small_bench());
  EXPECT_EQ(&backend(), &before);
  EXPECT_EQ(&memory(), &memory_before);
}

TEST(Profile, ShareOfTheCeilingIsThatOfTheTighterBound) {
  MachineCeilings machine;
  machine.f32_gflops = 100;
  machine.int8_gops = 400;
  machine.read_gigabytes_per_second = 10;
  ProfileRow row;
  row.seconds = 1;
  row.operations = 40e9;  // 0.4 s
  row.bytes = 2e9;        // 0.2 s
  EXPECT_DOUBLE_EQ(row.share_of_ceiling(machine), 0.4);
  EXPECT_FALSE(row.bound_by_memory(machine));
  row.arithmetic = Arithmetic::int8;  // 0.1 s
  EXPECT_DOUBLE_EQ(row.share_of_ceiling(machine), 0.2);
  EXPECT_TRUE(row.bound_by_memory(machine));
}

}  // namespace
}  // namespace pronghorn::lab
