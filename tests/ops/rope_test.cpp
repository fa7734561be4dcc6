#include "ops/rope.h"

#include <gtest/gtest.h>

#include <numbers>

#include "base/error.h"
#include "ops/operator_check.h"

namespace pronghorn {
namespace {

using check::check_operator;
using check::OperatorCheck;
using check::Values;
using Kind = RopeScaling::Kind;

constexpr int64_t kHead = 23;
constexpr double kTheta = 10000, kTurn = 2 * std::numbers::pi;

int32_t position_of(int64_t row) { return static_cast<int32_t>(row * 977 + 3); }

// rope() of two heads against a loop over pairs whose angles are given.
void check_rotation(const std::string& name, const SharedAngles& angles,
                    const std::vector<double>& frequencies, double magnitude, bool interleaved) {
  OperatorCheck check;
  check.name = name;
  check.inputs = [](int64_t rows) { return std::vector<check::Input>{{{rows, 2 * kHead}}}; };
  check.forward = [=](const Context& context, const std::vector<Tensor>& in) {
    std::vector<int32_t> positions;
    for (int64_t row = 0; row < in[0].rows(); ++row) positions.push_back(position_of(row));
    return std::vector<Tensor>{rope(context, in[0], positions, kHead, angles)};
  };
  check.reference = [=](const Values& in, int64_t rows) {
    std::vector<double> y = in[0];
    const size_t pairs = frequencies.size();
    for (int64_t head = 0; head < 2 * rows; ++head) {
      for (size_t i = 0; i < pairs; ++i) {
        const double angle = position_of(head / 2) * frequencies[i];
        const size_t first = static_cast<size_t>(head * kHead);
        const size_t a = first + (interleaved ? 2 * i : i);
        const size_t b = first + (interleaved ? 2 * i + 1 : i + pairs);
        y[a] = magnitude * (in[0][a] * std::cos(angle) - in[0][b] * std::sin(angle));
        y[b] = magnitude * (in[0][b] * std::cos(angle) + in[0][a] * std::sin(angle));
      }
    }
    return Values{y};
  };
  check_operator(check);
}

std::vector<double> plain(int64_t rotary, double theta = kTheta) {
  std::vector<double> all;
  for (int64_t i = 0; i < rotary; i += 2) {
    all.push_back(std::pow(theta, -static_cast<double>(i) / static_cast<double>(rotary)));
  }
  return all;
}

TEST(Rope, TurnsPairsOfChannels) {
  for (const int64_t rotary : {int64_t{22}, int64_t{14}}) {
    for (const bool interleaved : {false, true}) {
      check_rotation(fmt::format("rope {}{}", rotary, interleaved ? " interleaved" : ""),
                     rotary_angles(kTheta, rotary, {}, interleaved), plain(rotary), 1, interleaved);
    }
  }
}

TEST(Rope, TurnsByScaledAnglesAndMultiplies) {
  RopeScaling scaling;
  scaling.kind = Kind::yarn;
  scaling.factor = 4;
  scaling.original_context = 64;
  const SharedAngles angles = rotary_angles(kTheta, 22, scaling);
  check_rotation("yarn", angles, angles->frequencies, 0.1 * std::log(4.0) + 1, false);
}

// Half of the pairs turn by the first of two positions and half by the second, with the angles that
// heads of half the width would have.
TEST(Rope, TurnsByPositionsInTwoDimensions) {
  constexpr int64_t kRotary = 20;
  const auto place = [](int64_t row, int64_t axis) {
    return static_cast<int32_t>(axis == 0 ? row / 7 - 1 : row % 7 * 5);
  };
  OperatorCheck check;
  check.name = "rope in two dimensions";
  check.inputs = [](int64_t rows) { return std::vector<check::Input>{{{rows, 2 * kHead}}}; };
  check.forward = [=](const Context& context, const std::vector<Tensor>& in) {
    std::vector<int32_t> positions;
    for (int64_t row = 0; row < in[0].rows(); ++row) {
      positions.insert(positions.end(), {place(row, 0), place(row, 1)});
    }
    return std::vector<Tensor>{
        rope(context, in[0], positions, kHead, rotary_angles(kTheta, kRotary), 2)};
  };
  check.reference = [=](const Values& in, int64_t rows) {
    std::vector<double> y = in[0];
    for (int64_t head = 0; head < 2 * rows; ++head) {
      for (int64_t i = 0; i < kRotary / 2; ++i) {
        const int64_t axis = i / (kRotary / 4), j = i % (kRotary / 4);
        const double frequency = std::pow(kTheta, -2.0 * static_cast<double>(j) / (kRotary / 2));
        const double angle = place(head / 2, axis) * frequency;
        const auto a = static_cast<size_t>(head * kHead + i), b = a + kRotary / 2;
        y[a] = in[0][a] * std::cos(angle) - in[0][b] * std::sin(angle);
        y[b] = in[0][b] * std::cos(angle) + in[0][a] * std::sin(angle);
      }
    }
    return Values{y};
  };
  check_operator(check);
  EXPECT_THROW(rope({}, Tensor::zeros({1, kHead}), std::vector<int32_t>{1, 2}, kHead,
                    rotary_angles(kTheta, 22), 2),
               Error);
}

void expect_frequencies(const SharedAngles& angles, const std::vector<double>& expected) {
  ASSERT_EQ(angles->frequencies.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(angles->frequencies[i], expected[i], 1e-12 * expected[i]) << i;
  }
}

TEST(RopeScaling, LinearDividesEachAngle) {
  RopeScaling scaling;
  scaling.kind = Kind::linear;
  scaling.factor = 2.5;
  std::vector<double> expected = plain(22);
  for (double& f : expected) f /= 2.5;
  expect_frequencies(rotary_angles(kTheta, 22, scaling), expected);
}

// By the context that is configured, never by the text.
TEST(RopeScaling, DynamicNtkAndLongRopeGoByTheConfiguredContext) {
  RopeScaling scaling;
  scaling.kind = Kind::dynamic_ntk;
  scaling.factor = 3;
  scaling.original_context = 100;
  const SharedAngles short_angles = rotary_angles(kTheta, 22, scaling);
  expect_frequencies(short_angles, plain(22));
  EXPECT_EQ(short_angles->context, 100);
  scaling.context = 250;
  const SharedAngles long_angles = rotary_angles(kTheta, 22, scaling);
  expect_frequencies(long_angles, plain(22, kTheta * std::pow(3 * 2.5 - 2, 22.0 / 20)));
  EXPECT_EQ(long_angles->context, 250);

  RopeScaling by_pair;
  by_pair.kind = Kind::longrope;
  by_pair.factor = 8;
  by_pair.original_context = 100;
  by_pair.short_factors = {1, 1.5, 2};
  by_pair.long_factors = {2, 4, 8};
  std::vector<double> expected = plain(6);
  for (size_t i = 0; i < 3; ++i) expected[i] /= by_pair.short_factors[i];
  expect_frequencies(rotary_angles(kTheta, 6, by_pair), expected);
  EXPECT_NEAR(rotary_angles(kTheta, 6, by_pair)->magnitude,
              std::sqrt(1 + std::log(8.0) / std::log(100.0)), 1e-6);
  by_pair.context = 101;
  by_pair.attention_factor = 1.25;
  expected = plain(6);
  for (size_t i = 0; i < 3; ++i) expected[i] /= by_pair.long_factors[i];
  expect_frequencies(rotary_angles(kTheta, 6, by_pair), expected);
  EXPECT_EQ(rotary_angles(kTheta, 6, by_pair)->magnitude, 1.25f);
  by_pair.long_factors.pop_back();
  EXPECT_THROW(rotary_angles(kTheta, 6, by_pair), Error);
}

// Pairs that turn often stay, slow ones are divided, and those between lie between.
TEST(RopeScaling, YarnAndLlama3GoByTurnsInTheOriginalContext) {
  const std::vector<double> before = plain(64);
  RopeScaling scaling;
  scaling.factor = 8;
  scaling.original_context = 1024;
  for (const Kind kind : {Kind::yarn, Kind::llama3}) {
    scaling.kind = kind;
    const double fast = kind == Kind::yarn ? scaling.beta_fast : scaling.high_frequency_factor;
    const double slow = kind == Kind::yarn ? scaling.beta_slow : scaling.low_frequency_factor;
    const SharedAngles angles = rotary_angles(kTheta, 64, scaling);
    int between = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      const double turns = 1024 * before[i] / kTurn;
      const double after = angles->frequencies[i];
      EXPECT_LE(after, before[i]);
      EXPECT_GE(after, before[i] / 8 * (1 - 1e-12));
      // The ends of YaRN's ramp are whole pairs outside.
      if (turns > fast * 1.4) EXPECT_EQ(after, before[i]) << i;
      if (turns < slow / 1.4) EXPECT_NEAR(after, before[i] / 8, 1e-12 * after) << i;
      between += after < before[i] && after > before[i] / 8 * (1 + 1e-9);
    }
    EXPECT_GE(between, 3);
    EXPECT_EQ(angles->magnitude,
              kind == Kind::yarn ? static_cast<float>(0.1 * std::log(8.0) + 1) : 1.0f);
  }
}

// Worked by hand: theta 10000, 8 channels, L = 1000 / (2 pi): pair i turns 1000 / (4 pi^2) times
// 10^-i, that is 25.3, 2.53, 0.253, 0.0253.
TEST(RopeScaling, Llama3InterpolatesInTurns) {
  RopeScaling scaling;
  scaling.kind = Kind::llama3;
  scaling.factor = 4;
  scaling.original_context = 159;
  const double turns = 159 * 0.1 / kTurn;  // of pair 1
  const double kept = (turns - 1) / 3;
  expect_frequencies(rotary_angles(kTheta, 8, scaling),
                     {1, 0.1 * ((1 - kept) / 4 + kept), 0.01 / 4, 0.001 / 4});
}

TEST(Rope, ShapesAreChecked) {
  const Tensor x = Tensor::zeros({2, 6}), other = Tensor::zeros({3, 6});
  const std::vector<int32_t> positions = {0, 1};
  const SharedAngles six = rotary_angles(kTheta, 6), four = rotary_angles(kTheta, 4);
  EXPECT_THROW(rope({}, other, positions, 6, six), Error);
  EXPECT_THROW(rope({}, x, positions, 4, four), Error);
  EXPECT_THROW(rope({}, x, positions, 3, four), Error);
  EXPECT_THROW(rotary_angles(kTheta, 5), Error);
  EXPECT_THROW(rotary_angles(kTheta, 0), Error);
  EXPECT_THROW(rotary_angles(-1, 4), Error);
}

// Two kinds of angles in turn, as models with windows have them: neither is given the other's.
TEST(Rope, KeepsTablesApart) {
  const Tensor x = Tensor::full({3, 8}, 1.0f);
  const std::vector<int32_t> positions = {5, 6, 9};
  std::vector<SharedAngles> kinds = {rotary_angles(1e4, 8), rotary_angles(1e6, 8),
                                     rotary_angles(1e4, 8, {}, true)};
  RopeScaling scaling;
  scaling.kind = Kind::yarn;
  scaling.factor = 4;
  scaling.original_context = 64;
  kinds.push_back(rotary_angles(1e4, 8, scaling));
  std::vector<std::vector<double>> first;
  for (const SharedAngles& angles : kinds) {
    first.push_back(check::flatten(rope({}, x, positions, 8, angles)));
  }
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < kinds.size(); ++i) {
      EXPECT_EQ(check::flatten(rope({}, x, positions, 8, kinds[i])), first[i]);
      for (size_t j = 0; j < i; ++j) EXPECT_NE(first[i], first[j]);
    }
  }
}

}  // namespace
}  // namespace pronghorn
