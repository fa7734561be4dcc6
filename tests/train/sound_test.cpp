// Folders of sounds, examples of them, and models that learn to write down what is said.
#include "train/sound.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numbers>

#include "base/files.h"
#include "formats/resample.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/wav.h"
#include "train/train_log.h"
#include "train/trainer.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::pcm16;
using testing_support::wav_of;

constexpr int64_t kRate = 4000;

// Letters are tones, a low, b and c higher, with silence between them.
std::vector<float> spoken(const std::string& text, double pitch) {
  const std::map<char, double> hertz = {{'a', 300}, {'b', 700}, {'c', 1300}, {' ', 0}};
  std::vector<float> samples(200);
  for (const char letter : text) {
    const double frequency = hertz.at(letter) * pitch;
    for (int i = 0; i < 240; ++i) {
      const double angle = 2 * std::numbers::pi * frequency * i / double{kRate};
      samples.push_back(static_cast<float>(0.5 * std::sin(angle)));
    }
    samples.resize(samples.size() + 80);
  }
  return samples;
}

SoundSet set_of(int64_t count, double pitch) {
  const char* const words[] = {"ab", "ba", "cab", "c", "abc", "ac"};
  SoundSet set;
  for (int64_t i = 0; i < count; ++i) {
    std::string text = words[i % 6];
    if (i % 2 == 1) text += std::string(" ") + words[(i + 2) % 6];
    set.sounds.push_back({kRate, spoken(text, pitch * (1 + 0.002 * double(i % 7)))});
    set.texts.push_back(text);
  }
  return set;
}

SoundFolder folder_of_tones() {
  SoundFolder sounds;
  sounds.train = set_of(24, 1);
  sounds.test = set_of(6, 1.01);
  sounds.symbols = symbols_of(sounds.train.texts, "test");
  return sounds;
}

ModelConfig config_for(const SoundFolder& sounds, const std::string& mixer, bool both_ways,
                       bool rates) {
  nlohmann::json json = {{"hidden_size", 32}, {"pattern", rates ? "a(a)a" : "2a"}};
  if (rates) json["subsample"] = {{"type", "zipformer"}, {"rate", 2}, {"bypass_steps", 20}};
  json["sound"] = {{"sample_rate", kRate}, {"window", 128}, {"hop", 64},
                   {"mels", 16},           {"stack", 1},    {"both_ways", both_ways}};
  json["blocks"]["a"] = {{"mixer", parse_json(mixer, "test")},
                         {"ffn", {{"type", "swiglu"}, {"size", 48}}}};
  ModelConfig config = read_pronghorn_config({json, "test"});
  set_sound(config, sounds.symbols);
  return config;
}

constexpr const char* kAttention = R"({"type": "attention", "heads": 2, "rope": {}})";
constexpr const char* kMamba = R"({"type": "mamba", "state": 4})";

TEST(Sounds, EpochsVisitEverySoundOnce) {
  const SoundFolder sounds = folder_of_tones();
  const ModelConfig config = config_for(sounds, kMamba, true, false);
  SoundSource source(*config.sound, sounds, 7);
  EXPECT_EQ(source.held_out_examples(), 6);
  std::vector<int32_t> tokens(static_cast<size_t>(source.length())), targets(tokens.size());
  std::map<int32_t, int> seen;
  for (uint64_t i = 0; i < 24; ++i) {
    source.fill(24 + i, tokens, targets);
    ++seen[tokens[0]];
    const std::string& text = sounds.train.texts[static_cast<size_t>(tokens[0])];
    EXPECT_EQ(std::ranges::count_if(targets, [](int32_t t) { return t >= 0; }), std::ssize(text));
    EXPECT_EQ(decode_symbols(*config.sound, std::span(targets).first(text.size())), text);
  }
  EXPECT_EQ(seen.size(), 24u);
  source.fill(kHeldOutExamples + 1, tokens, targets);
  EXPECT_EQ(source.held_out_text(1), sounds.test.texts[1]);
  // As many rows as this sound has, whatever the longest has.
  const Batch batch = source.batch(tokens);
  EXPECT_EQ(batch.rows(), config.sound->rows(std::ssize(sounds.test.sounds[1].samples)));
}

TEST(Sounds, RefusesWhatDoesNotFit) {
  SoundFolder sounds = folder_of_tones();
  const ModelConfig config = config_for(sounds, kMamba, true, false);
  const auto refusal = [&] { return error_of([&] { SoundSource(*config.sound, sounds, 1); }); };
  EXPECT_EQ(refusal(), "no error");
  sounds.test.texts[2] = "xyz";
  EXPECT_THAT(refusal(), HasSubstr("sound 3 of test: 'x'"));
  sounds.test.texts[2] = std::string(400, 'a');
  EXPECT_THAT(refusal(), HasSubstr("which needs 799"));
  sounds.test.texts[2] = "a";
  sounds.test.sounds[2].sample_rate = 8000;
  if (resamples_sound()) {
    EXPECT_EQ(refusal(), "no error");
  } else {
    EXPECT_THAT(refusal(), HasSubstr("8000 samples a second in place of 4000"));
  }
  sounds.test.sounds[2].sample_rate = 1 << 21;
  EXPECT_THAT(refusal(),
              HasSubstr("sound 3 of test: has 2097152 samples a second in place of 4000"));
}

TEST(Sounds, AreLearnt) {
  const SoundFolder sounds = folder_of_tones();
  struct Kind {
    const char* mixer;
    bool both_ways, rates;
  };
  for (const Kind& kind :
       {Kind{kAttention, true, true}, Kind{kMamba, true, false}, Kind{kMamba, false, false}}) {
    SCOPED_TRACE(fmt::format("{} {} {}", kind.mixer, kind.both_ways, kind.rates));
    const ModelConfig config = config_for(sounds, kind.mixer, kind.both_ways, kind.rates);
    SoundSource source(*config.sound, sounds, 3);
    Model model(config, 1);
    const Folder folder;
    TrainRun run;
    run.config.batch_tokens = 8 * source.length();
    run.config.micro_batch_tokens = 4 * source.length();
    run.config.learning_rate = 1e-2;
    run.config.precision = Precision::f32;
    run.budget.steps = 80;
    run.directory = folder.path();
    const TrainResult result = train(model, source, nullptr, nullptr, run);
    const std::vector<TrainLogLine> log = read_train_log(folder / "log.jsonl");
    ASSERT_EQ(log.size(), 80u);
    // Nats a symbol: about 5 where nothing is known; half of that where only their number is.
    EXPECT_LT(log.back().loss, 0.6 * log.front().loss);
    const SoundScore score = evaluate_sound(model, Precision::f32, source);
    EXPECT_EQ(score.sounds, 6);
    EXPECT_NEAR(score.sound_seconds, sounds.test.seconds(), 1e-9);
    EXPECT_DOUBLE_EQ(score.word_accuracy(), result.accuracy.value());
    // What a sound says alone is what it says among others.
    int64_t right = 0;
    for (size_t i = 0; i < 6; ++i) {
      right += transcribe(model, Precision::f32, sounds.test.sounds[i]) == sounds.test.texts[i];
    }
    EXPECT_EQ(right, score.solved);
  }
}

TEST(Sounds, WordsAreCountedByTheirEditDistance) {
  SoundScore score;
  EXPECT_EQ(score.word_accuracy(), 0);
  score.words = 4;
  score.word_errors = 1;
  EXPECT_DOUBLE_EQ(score.word_accuracy(), 0.75);
  score.word_errors = 9;
  EXPECT_EQ(score.word_accuracy(), 0);
}

TEST(Sounds, OtherRatesThanTheModelsAreResampled) {
  const SoundFolder sounds = folder_of_tones();
  const Model model(config_for(sounds, kMamba, true, false), 1);
  const auto said = [&](int64_t rate) {
    return error_of([&] {
      transcribe(model, Precision::f32, {rate, std::vector<float>(44100)}, "a.wav");
    });
  };
  EXPECT_EQ(said(4000), "no error");
  if (resamples_sound()) {
    EXPECT_EQ(said(44100), "no error");
  } else {
    EXPECT_THAT(said(44100), HasSubstr("a.wav: has 44100 samples a second in place of 4000"));
  }
  EXPECT_THAT(error_of([&] {
                transcribe(model, Precision::f32, {4000, std::vector<float>(1)}, "a.wav");
              }),
              HasSubstr("a.wav: log-mel spectrogram: 1 samples"));
}

class SoundFilesTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!reads_sound()) GTEST_SKIP() << "built without libsndfile";
    for (const char* part : {"train", "test"}) {
      std::filesystem::create_directories(folder_ / part);
      put(std::string(part) + "/1.wav", wav(4000));
      put(std::string(part) + "/2.wav", wav(4000));
      put(std::string(part) + "/labels.tsv", "1.wav\tone\n\n2.wav\ttwo one\r\n");
    }
  }

  static std::string wav(int rate) {
    return wav_of(pcm16(std::vector<int16_t>(800, 1000)), {.rate = rate});
  }
  void put(const std::string& name, const std::string& bytes) { write_file(folder_ / name, bytes); }
  std::string refusal(const std::string& labels) {
    put("train/labels.tsv", labels);
    return error_of([&] { read_sound_folder(folder_.path()); });
  }

  Folder folder_;
};

TEST_F(SoundFilesTest, AListNamesSoundsAndTexts) {
  const SoundFolder sounds = read_sound_folder(folder_.path());
  EXPECT_THAT(sounds.train.texts, ElementsAre("one", "two one"));
  EXPECT_THAT(sounds.symbols, ElementsAre(" ", "e", "n", "o", "t", "w"));
  EXPECT_EQ(sounds.train.sounds[0].samples.size(), 800u);
  const std::string before = sounds.identity();
  put("test/labels.tsv", "1.wav\tone\n2.wav\ttwo two\n");
  EXPECT_NE(read_sound_folder(folder_.path()).identity(), before);
  // The same samples at another rate are another sound.
  put("test/labels.tsv", "1.wav\tone\n2.wav\ttwo one\n");
  EXPECT_EQ(read_sound_folder(folder_.path()).identity(), before);
  put("test/2.wav", wav(8000));
  EXPECT_NE(read_sound_folder(folder_.path()).identity(), before);
}

TEST_F(SoundFilesTest, OtherListsAreRefused) {
  EXPECT_THAT(refusal("1.wav one\n"), HasSubstr("line 1: '1.wav one' has no tab"));
  EXPECT_THAT(refusal("1.wav\tone\n1.wav\ttwo\n"), HasSubstr("line 2: '1.wav' is there twice"));
  EXPECT_THAT(refusal("../test/1.wav\tone\n"), HasSubstr("no file in the folder"));
  EXPECT_THAT(refusal("/etc/passwd\tone\n"), HasSubstr("no file in the folder"));
  EXPECT_THAT(refusal("1.wav\t \n"), HasSubstr("no text"));
  EXPECT_THAT(refusal("1.wav\t\xFF\n"), HasSubstr("no text"));
  EXPECT_THAT(refusal("3.wav\tone\n"), HasSubstr("3.wav"));
  EXPECT_THAT(refusal("\n"), HasSubstr("lists no sounds"));
  std::filesystem::remove_all(folder_ / "test");
  EXPECT_THAT(refusal("1.wav\tone\n"), HasSubstr("has no folder"));
}

}  // namespace
}  // namespace pronghorn
