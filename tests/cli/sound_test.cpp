// Models of sound from end to end: trained, judged, asked and compared.
#include <gmock/gmock.h>

#include "cli/command.h"
#include "formats/sound.h"
#include "support/wav.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_cli::CliTest;

class SoundCliTest : public CliTest {
 protected:
  SoundCliTest() {
    nlohmann::json json = config("a(a)");
    json.erase("vocab_size");
    json["sound"] = {{"sample_rate", 4000}, {"window", 128}, {"hop", 64}, {"mels", 16}};
    json["subsample"] = {{"type", "zipformer"}, {"rate", 2}};
    put("zipformer.json", json.dump());
    json = config("s");
    json.erase("vocab_size");
    json["sound"] = {
        {"sample_rate", 4000}, {"window", 128}, {"hop", 64}, {"mels", 16}, {"both_ways", false}};
    put("causal.json", json.dump());
    for (const std::string part : {"train", "test"}) {
      std::filesystem::create_directories(folder_ / "sounds" / part);
      std::string labels;
      for (int i = 0; i < 4; ++i) {
        std::vector<int16_t> samples;
        for (int at = 0; at < 1600; ++at) {
          samples.push_back(static_cast<int16_t>(at * (i + 1) % 64 * 200 - 6400));
        }
        const std::string name = fmt::format("{}.wav", i);
        put("sounds/" + part + "/" + name,
            testing_support::wav_of(testing_support::pcm16(samples), {.rate = 4000}));
        labels += fmt::format("{}\t{}\n", name, i % 2 == 0 ? "on" : "off on");
      }
      put("sounds/" + part + "/labels.tsv", labels);
    }
  }

  void SetUp() override {
    if (!reads_sound()) GTEST_SKIP() << "built without libsndfile";
  }
};

TEST_F(SoundCliTest, TrainsJudgesAndTranscribes) {
  for (const std::string name : {"zipformer", "causal"}) {
    SCOPED_TRACE(name);
    const auto trained = json_of({"train", name + ".json", "--task", "sound", "--data", "sounds",
                                  "--steps", "4", "--out", name});
    EXPECT_TRUE(trained["accuracy"].is_number());
    const auto eval = json_of({"eval", name, "--task", "sound", "--data", "sounds"});
    EXPECT_EQ(eval["sounds"], 4);
    EXPECT_EQ(eval["words"], 6);
    EXPECT_NEAR(eval["sound_seconds"].get<double>(), 1.6, 1e-9);
    EXPECT_GT(eval["sound_per_second"].get<double>(), 0);
    EXPECT_THAT(output_of({"eval", name, "--task", "sound", "--data", "sounds"}),
                HasSubstr("of 6 words right"));
    const auto texts = json_of({"transcribe", name, "sounds/test/1.wav", "sounds/test/1.wav"});
    ASSERT_EQ(texts.size(), 2u);
    EXPECT_TRUE(texts[0]["text"].is_string());
    EXPECT_EQ(texts[0]["text"], texts[1]["text"]);
    EXPECT_THAT(output_of({"transcribe", name, "sounds/test/1.wav"}),
                HasSubstr("sounds/test/1.wav  "));
  }
  put("x.wav", "no sound, whatever its name says");
  EXPECT_THAT(failure_of(1, {"transcribe", "causal", "x.wav"}), HasSubstr("x.wav: is no WAV"));
  EXPECT_THAT(failure_of(1, {"classify", "causal", "x.wav"}), HasSubstr("not of images"));
  EXPECT_THAT(
      failure_of(1, {"generate", "causal", "--prompt", "a"}),
      AllOf(HasSubstr("is a model of sound, which reads no texts"), HasSubstr("transcribe")));
  // A bad one of several is told, the others are written down, and the command fails in the end.
  const auto several =
      run({"transcribe", "causal", "sounds/test/0.wav", "x.wav", "none.wav", "sounds/test/1.wav"});
  EXPECT_EQ(several.code, 1);
  EXPECT_THAT(several.out, AllOf(HasSubstr("sounds/test/0.wav  "), HasSubstr("sounds/test/1.wav  "),
                                 testing::Not(HasSubstr("x.wav"))));
  EXPECT_THAT(several.err, AllOf(HasSubstr("x.wav: is no WAV"), HasSubstr("none.wav: "),
                                 HasSubstr("2 of 4 sounds could not be written down")));
  const auto machine = run({"transcribe", "causal", "x.wav", "sounds/test/1.wav", "--json"});
  EXPECT_EQ(machine.code, 1);
  const nlohmann::json entries = nlohmann::json::parse(machine.out);
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_THAT(entries[0]["error"].get<std::string>(), HasSubstr("is no WAV"));
  EXPECT_TRUE(entries[1]["text"].is_string());
}

TEST_F(SoundCliTest, RefusesWhatDoesNotFit) {
  EXPECT_THAT(
      failure_of(2, {"train", "causal.json", "--task", "sound", "--out", "x", "--steps", "1"}),
      HasSubstr("labels.tsv"));
  EXPECT_THAT(
      failure_of(1, {"train", "causal.json", "--data", "text.txt", "--out", "x", "--steps", "1"}),
      HasSubstr("the task \"sound\""));
  EXPECT_THAT(failure_of(1, {"train", "tiny.json", "--task", "sound", "--data", "sounds", "--out",
                             "x", "--steps", "1"}),
              HasSubstr("model of texts"));
  EXPECT_THAT(failure_of(1, {"compare", "tiny.json", "--task", "sound", "--data", "sounds", "--out",
                             "c", "--tokens", "100"}),
              HasSubstr("not of sound"));
}

TEST_F(SoundCliTest, ConfigurationsHaveTheSameSize) {
  const auto folder = std::filesystem::path(PRONGHORN_SOURCE_DIR) / "configs/sound";
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const auto inspected = json_of({"inspect", entry.path().string()});
    // Within 3 percent of each other.
    EXPECT_NEAR(inspected["parameters"].get<double>(), 1.022e6, 0.015 * 1.022e6) << entry.path();
    EXPECT_THAT(output_of({"inspect", entry.path().string()}),
                AllOf(HasSubstr("symbols 28"), HasSubstr("50.0 rows a second")));
    ++count;
  }
  EXPECT_EQ(count, 4);
}

TEST_F(SoundCliTest, Compares) {
  const std::vector<std::string> compare = {"compare", "zipformer.json", "causal.json", "--task",
                                            "sound",   "--data",         "sounds",      "--out",
                                            "c",       "--tokens",       "800"};
  const auto run = json_of(compare);
  ASSERT_EQ(run["architectures"].size(), 2u);
  for (const auto& one : run["architectures"]) {
    EXPECT_TRUE(one["failure"].is_null()) << one["failure"];
    EXPECT_GT(one["sound"]["sound_per_second"].get<double>(), 0);
    EXPECT_GT(one["sound"]["train_sound_per_second"].get<double>(), 0);
  }
  EXPECT_THAT(output_of(compare), AllOf(HasSubstr("words right"), HasSubstr("sound s/s")));
}

}  // namespace
}  // namespace pronghorn
