// Sound at another rate: tones are the same tones, what the new rate cannot hold is gone, and what
// is refused.
#include "formats/resample.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <numbers>
#include <vector>

#include "support/errors.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_support::error_of;

double tone(double hertz, int64_t rate, size_t sample) {
  return 0.5 * std::sin(2 * std::numbers::pi * hertz * static_cast<double>(sample) /
                        static_cast<double>(rate));
}

Sound tones(int64_t rate, std::initializer_list<double> hertz) {
  Sound sound{rate, std::vector<float>(static_cast<size_t>(rate))};  // a second
  for (size_t i = 0; i < sound.samples.size(); ++i) {
    for (const double frequency : hertz) {
      sound.samples[i] += static_cast<float>(tone(frequency, rate, i));
    }
  }
  return sound;
}

TEST(Resample, TheSameRateIsTheSameSound) {
  const Sound sound = tones(16000, {440});
  EXPECT_EQ(resampled(sound, 16000, "x").samples, sound.samples);
}

TEST(Resample, WithoutTheLibraryAnErrorSaysWhatToInstall) {
  if (resamples_sound()) GTEST_SKIP() << "built with libsamplerate";
  EXPECT_THAT(error_of([] { resampled(tones(8000, {440}), 16000, "a.wav"); }),
              AllOf(HasSubstr("a.wav: has 8000 samples a second in place of 16000"),
                    HasSubstr("libsamplerate0-dev"), HasSubstr("sox")));
}

class ResampleTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!resamples_sound()) GTEST_SKIP() << "built without libsamplerate";
  }

  // Away from the ends, where the sound breaks off: the largest difference from a tone.
  static double difference(const Sound& sound, double hertz) {
    double most = 0;
    const size_t size = sound.samples.size();
    for (size_t i = size / 10; i < size - size / 10; ++i) {
      most = std::max(most, std::abs(double{sound.samples[i]} - tone(hertz, sound.sample_rate, i)));
    }
    return most;
  }
};

TEST_F(ResampleTest, AToneIsTheSameAtEveryRate) {
  for (const int64_t from : {8000, 11025, 16000, 44100, 48000}) {
    for (const int64_t to : {8000, 16000, 44100}) {
      const Sound sound = resampled(tones(from, {440}), to, "x");
      EXPECT_EQ(sound.sample_rate, to);
      EXPECT_NEAR(sound.seconds(), 1, 2.0 / static_cast<double>(to));
      // The library's table of its filter has steps; 60 dB below the tone.
      EXPECT_LT(difference(sound, 440), 5e-4) << from << " to " << to;
    }
  }
}

// A tone of 15 kHz would be heard at 1 kHz, were it not filtered first.
TEST_F(ResampleTest, WhatTheRateCannotHoldIsNoOtherTone) {
  EXPECT_LT(difference(resampled(tones(48000, {440, 15000}), 16000, "x"), 440), 5e-4);
}

TEST_F(ResampleTest, RefusesRatesAndLengthsOutOfReach) {
  EXPECT_THAT(error_of([] {
                resampled({1, std::vector<float>(100)}, 16000, "x");
              }),
              AllOf(HasSubstr("x: has 1 samples"), HasSubstr("up to 256")));
  EXPECT_THAT(error_of([] {
                resampled({1 << 20, std::vector<float>(100)}, 4000, "x");
              }),
              HasSubstr("up to 256"));
  const std::vector<float> long_sound(static_cast<size_t>(kMaxSoundSamples / 2 + 1));
  EXPECT_THAT(error_of([&] {
                resampled({8000, long_sound}, 16000, "x");
              }),
              HasSubstr("samples long at 16000"));
}

}  // namespace
}  // namespace pronghorn
