// TrainingState: a file holds all of it, bit for bit, and files that do not fit are refused.
#include "train/training_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/random.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/tiny_models.h"
#include "train/tiny.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::tiny_config;

std::vector<float> numbers_of(const Model& model, const TrainingState& state) {
  std::vector<float> all;
  const auto add = [&](const Tensor& tensor) {
    all.insert(all.end(), tensor.values().begin(), tensor.values().end());
  };
  for (size_t i = 0; i < state.m.size(); ++i) {
    add(model.parameters()[i].value);
    add(state.m[i]);
    add(state.v[i]);
  }
  return all;
}

class TrainingStateTest : public testing::Test {
 protected:
  TrainingStateTest() {
    Random random(11, "moments");
    for (size_t i = 0; i < state_.m.size(); ++i) {
      for (float& x : state_.m[i].values()) x = static_cast<float>(random.normal() * 1e-20);
      for (float& x : state_.v[i].values()) x = static_cast<float>(random.uniform());
    }
    state_.step = 12345678901;
    state_.tokens = 98765432109876;
    state_.seconds = 0.1 + 0.2;  // no short decimal
    state_.best_bits_per_byte = 1.0 / 3;
    state_.save(file_, model_, identity_);
  }

  // The error of loading into a fresh model.
  std::string load_error(const nlohmann::json& identity) {
    return error_of([&] {
      const Model model(tiny_config(), 2);
      TrainingState state(model);
      state.load(file_, model, identity);
    });
  }

  Folder folder_;
  std::filesystem::path file_ = folder_ / "state.safetensors";
  Model model_{tiny_config(), 1};
  TrainingState state_{model_};
  nlohmann::json identity_ = {{"seed", 7}, {"settings", {{"lr", 0.1}, {"window", 64}}}};
};

TEST_F(TrainingStateTest, RoundTripToTheBit) {
  const Model model(tiny_config(), 2);
  TrainingState state(model);
  EXPECT_NE(numbers_of(model, state), numbers_of(model_, state_));
  state.load(file_, model, identity_);
  EXPECT_EQ(numbers_of(model, state), numbers_of(model_, state_));
  EXPECT_EQ(state.step, state_.step);
  EXPECT_EQ(state.tokens, state_.tokens);
  EXPECT_EQ(state.seconds, state_.seconds);
  EXPECT_EQ(state.best_bits_per_byte, state_.best_bits_per_byte);
  state.save(folder_ / "again", model, identity_);
  EXPECT_TRUE(read_file(folder_ / "again") == read_file(file_));
}

TEST_F(TrainingStateTest, AnotherIdentityIsNamed) {
  EXPECT_EQ(load_error(identity_), "no error");
  auto other = identity_;
  other["seed"] = 8;
  EXPECT_THAT(load_error(other),
              AllOf(HasSubstr("state.safetensors"), HasSubstr("seed: 7 then"), HasSubstr("8 now")));
  other = identity_;
  other["settings"]["window"] = 32;
  EXPECT_THAT(load_error(other),
              AllOf(HasSubstr("settings.window: 64 then, 32 now"), testing::Not(HasSubstr("lr"))));
  other = identity_;
  other["settings"].erase("lr");
  EXPECT_THAT(load_error(other), HasSubstr("settings.lr: 0.1 then"));
  other = identity_;
  other["data"] = "abc";
  EXPECT_THAT(load_error(other), HasSubstr("another data"));
}

TEST_F(TrainingStateTest, AnotherModelIsRefused) {
  for (const char* pattern : {"2a m", "m", "a s"}) {
    const Model model(tiny_config(pattern), 2);
    TrainingState state(model);
    EXPECT_THAT(error_of([&] { state.load(file_, model, identity_); }),
                AllOf(HasSubstr("state.safetensors"), HasSubstr("tensor 'parameter.")))
        << pattern;
  }
  ModelConfig wider = tiny_config();
  wider.vocab_size = 300;
  const Model model(wider, 2);
  TrainingState state(model);
  EXPECT_THAT(error_of([&] { state.load(file_, model, identity_); }),
              HasSubstr("[300, 32] was expected"));
  model_.save(folder_ / "checkpoint");
  EXPECT_THAT(error_of([&] {
                state_.load(folder_ / "checkpoint" / "model.safetensors", model_, identity_);
              }),
              HasSubstr("is not a training state"));
}

TEST_F(TrainingStateTest, DamagedFilesThrow) {
  const std::string good = read_file(file_);
  for (const double share : {0.0, 0.001, 0.01, 0.3, 0.5, 0.99}) {
    write_file(file_,
               good.substr(0, static_cast<size_t>(share * static_cast<double>(good.size()))));
    EXPECT_THAT(load_error(identity_), HasSubstr("state.safetensors")) << share;
  }
  write_file(file_, good.substr(0, good.size() - 1));
  EXPECT_THAT(load_error(identity_), HasSubstr("state.safetensors"));
  // Whatever byte of the header is damaged: an Error, or numbers that still fit; never a crash.
  const size_t header = std::min<size_t>(good.size(), 4000);
  for (size_t i = 0; i < header; i += 61) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
    write_file(file_, bad);
    load_error(identity_);
  }
}

TEST_F(TrainingStateTest, AFailedSaveKeepsTheOldFile) {
  const std::string good = read_file(file_);
  state_.step += 1;
  EXPECT_THAT(error_of([&] { state_.save(folder_ / "no/such/folder", model_, identity_); }),
              HasSubstr("no/such/folder"));
  EXPECT_TRUE(read_file(file_) == good);
}

}  // namespace
}  // namespace pronghorn
