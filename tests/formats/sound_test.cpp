// Sound from bytes: what is read, and what hostile files are told; log-mel spectrograms against
// those that scripts/make_log_mel_golden.py computes in float64.
#include "formats/sound.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>

#include "base/files.h"
#include "formats/json.h"
#include "formats/log_mel.h"
#include "support/errors.h"
#include "support/wav.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::little_endian;
using testing_support::pcm16;
using testing_support::wav_of;

class SoundTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!reads_sound()) GTEST_SKIP() << "built without libsndfile";
  }

  static std::string refusal(const std::string& bytes) {
    return error_of([&] { decode_sound(bytes, "x"); });
  }

  const std::string data_ = pcm16(std::vector<int16_t>{0, 16384, -32768, 8192});
};

TEST_F(SoundTest, IsReadAsItWasWritten) {
  const Sound sound = decode_sound(wav_of(data_), "x");
  EXPECT_EQ(sound.sample_rate, 16000);
  EXPECT_THAT(sound.samples, ElementsAre(0, 0.5f, -1, 0.25f));
  EXPECT_DOUBLE_EQ(sound.seconds(), 4 / 16000.0);
  const Sound slow = decode_sound(wav_of(data_, {.rate = 8000}), "x");
  EXPECT_EQ(slow.sample_rate, 8000);
}

TEST_F(SoundTest, ChannelsAreAveraged) {
  EXPECT_THAT(decode_sound(wav_of(data_, {.channels = 2}), "x").samples,
              ElementsAre(0.25f, -0.375f));
}

TEST_F(SoundTest, NumbersHaveAnyWidth) {
  const std::string bytes = {char(0x80), char(0xC0), char(0x00)};
  EXPECT_THAT(decode_sound(wav_of(bytes, {.bits = 8}), "x").samples, ElementsAre(0, 0.5f, -1));
  EXPECT_THAT(
      decode_sound(wav_of(little_endian(0x400000, 3) + little_endian(0x800000, 3), {.bits = 24}),
                   "x")
          .samples,
      ElementsAre(0.5f, -1));
  const std::string half = little_endian(std::bit_cast<uint32_t>(0.5f), 4);
  EXPECT_THAT(decode_sound(wav_of(half + half, {.tag = 3, .bits = 32}), "x").samples,
              ElementsAre(0.5f, 0.5f));
}

TEST_F(SoundTest, WrittenIntoAPipeItHasNoSize) {
  for (const int64_t size : {int64_t{0x7FFFF000}, int64_t{0xFFFFFFFF}}) {
    EXPECT_EQ(decode_sound(wav_of(data_, {}, size), "x").samples.size(), 4u);
  }
}

TEST_F(SoundTest, OtherFilesAreRefused) {
  const std::string whole = wav_of(data_);
  EXPECT_THAT(refusal(""), HasSubstr("x: is empty"));
  EXPECT_THAT(refusal("OggS and so on, and so on"), HasSubstr("no WAV file"));
  EXPECT_THAT(refusal(whole.substr(0, 20)), HasSubstr("x: "));
  EXPECT_THAT(refusal(whole.substr(0, 40)), HasSubstr("ends before its sound"));
  EXPECT_THAT(refusal(whole.substr(0, whole.size() - 3)), HasSubstr("after 5 of the 8 bytes"));
  EXPECT_THAT(refusal(wav_of("")), HasSubstr("0 samples"));
  EXPECT_THAT(refusal(wav_of(data_, {.rate = 0})), HasSubstr("x: "));
  EXPECT_THAT(refusal(wav_of(data_, {.channels = 0})), HasSubstr("x: "));
  EXPECT_THAT(refusal(wav_of(std::string(400, '\0'), {.channels = 100})), HasSubstr("x: "));
  const std::string nan = little_endian(0x7FC00000, 4);
  EXPECT_THAT(refusal(wav_of(nan, {.tag = 3, .bits = 32})), HasSubstr("not a number"));
  // IMA ADPCM, which needs more of a header than there is.
  EXPECT_THAT(refusal(wav_of(data_, {.tag = 0x11, .bits = 4})), HasSubstr("x: "));
}

// A byte after the other is another, and the file ends after each: no crash, no endless loop.
TEST_F(SoundTest, BrokenFilesEndInErrorsOrSound) {
  const std::string whole = wav_of(data_);
  for (size_t at = 0; at < whole.size(); ++at) {
    for (const char value : {'\0', '\x7F', '\xFF'}) {
      std::string broken = whole;
      broken[at] = value;
      refusal(broken);
    }
    EXPECT_NE(refusal(whole.substr(0, at)), "no error") << at;
  }
}

TEST(LogMel, IsThatOfTheDefinition) {
  const nlohmann::json golden = parse_json(
      read_file(std::string(PRONGHORN_SOURCE_DIR) + "/tests/formats/golden/log_mel.json"),
      "golden");
  std::vector<float> samples;
  for (const nlohmann::json& sample : golden["samples"]) {
    samples.push_back(static_cast<float>(sample.get<double>() / 32768));
  }
  for (const nlohmann::json& kind : golden["kinds"]) {
    const LogMel log_mel({.sample_rate = kind["sample_rate"],
                          .window = kind["window"],
                          .hop = kind["hop"],
                          .mels = kind["mels"],
                          .range = kind["range"]});
    const std::vector<float> frames = log_mel(samples);
    ASSERT_EQ(static_cast<int64_t>(frames.size()),
              log_mel.frames(std::ssize(samples)) * kind["mels"].get<int64_t>());
    size_t i = 0;
    for (const nlohmann::json& frame : kind["frames"]) {
      for (const nlohmann::json& value : frame) {
        // Numbers of about 1 in f32, and seven digits of the golden.
        ASSERT_NEAR(double{frames[i]}, value.get<double>(), 5e-7) << kind["window"] << ", " << i;
        ++i;
      }
    }
    EXPECT_EQ(i, frames.size());
  }
}

TEST(LogMel, WithoutARangeAFrameDoesNotDependOnLaterOnes) {
  std::vector<float> samples(4000);
  for (size_t i = 0; i < samples.size(); ++i) {
    samples[i] = 0.001f * static_cast<float>(i * i % 97);
  }
  for (const double range : {0.0, 2.0}) {
    const LogMel log_mel({.mels = 20, .range = range});
    const std::vector<float> before = log_mel(samples);
    std::vector<float> louder = samples;
    for (size_t i = 3000; i < louder.size(); ++i) louder[i] *= 1000;
    const std::vector<float> after = log_mel(louder);
    // Frame 17 ends with sample 2919.
    const bool same = std::equal(before.begin(), before.begin() + 18 * 20, after.begin());
    EXPECT_EQ(same, range == 0);
  }
}

TEST(LogMel, RefusesWhatHasNoFrames) {
  const auto refusal = [](const LogMelOptions& options, size_t samples) {
    return error_of([&] { LogMel{options}(std::vector<float>(samples)); });
  };
  EXPECT_EQ(refusal({}, 201), "no error");
  EXPECT_THAT(refusal({}, 200), AllOf(HasSubstr("200 samples"), HasSubstr("201")));
  EXPECT_THAT(refusal({.hop = 300}, 250), HasSubstr("300"));
  EXPECT_THAT(refusal({.window = 406}, 1000), HasSubstr("2, 3 and 5"));
  EXPECT_THAT(refusal({.mels = 0}, 1000), HasSubstr("0 bands"));
}

}  // namespace
}  // namespace pronghorn
