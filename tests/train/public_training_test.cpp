// Training by the public header: what it takes, what it refuses, what it says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/files.h"
#include "pronghorn/pronghorn.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::error_of;

class PublicTraining : public testing::Test {
 protected:
  PublicTraining() {
    write_file(folder_ / "config.json", testing_support::tiny_json("a m").dump());
    std::string text;
    for (int i = 0; i < 400; ++i) text += fmt::format("line {} of the plain\n", i % 37);
    write_file(folder_ / "text.txt", text);
  }

  TrainingOptions options(const std::string& name) const {
    TrainingOptions options;
    options.config = folder_ / "config.json";
    options.data = {folder_ / "text.txt"};
    options.directory = folder_ / name;
    options.steps = 4;
    options.settings = R"({"window": 32, "batch_tokens": 128, "learning_rate": 0.01})";
    return options;
  }

  testing_support::Folder folder_;
};

TEST_F(PublicTraining, ATrainedModelGoesOnWithAnAdapter) {
  int64_t steps = 0;
  const TrainingResult first = train(options("run"), [&](const TrainingProgress& now) {
    steps = now.step;
    return true;
  });
  EXPECT_EQ(first.steps, 4);
  EXPECT_EQ(steps, 4);
  EXPECT_EQ(first.start_bits_per_byte, 0);
  EXPECT_GT(first.held_out_bits_per_byte, 0);
  EXPECT_LE(first.best_bits_per_byte, first.held_out_bits_per_byte);
  EXPECT_FALSE(first.accuracy);
  EXPECT_FALSE(first.is_bound);
  EXPECT_GT(first.peak_bytes, 4 * first.parameters);  // weights in f32, and more

  TrainingOptions more = options("tuned");
  more.config = folder_ / "run";
  more.adapter = {.rank = 2, .targets = {"q_proj"}};
  const TrainingResult tuned = train(more);
  // The held-out text is the same, and the adapter has changed nothing yet.
  EXPECT_DOUBLE_EQ(tuned.start_bits_per_byte, first.held_out_bits_per_byte);
  const LanguageModel base = LanguageModel::load(folder_ / "run");
  const LanguageModel changed = LanguageModel::load(folder_ / "run", folder_ / "tuned");
  const std::vector<int32_t> ids = base.tokenize("line 3");
  EXPECT_NE(base.logits(ids).values, changed.logits(ids).values);
}

TEST_F(PublicTraining, ATaskIsLearntWithoutTexts) {
  TrainingOptions task = options("task");
  task.data.clear();
  task.task.name = "mqar";
  task.task.length = 32;
  const TrainingResult result = train(task);
  ASSERT_TRUE(result.accuracy);
  EXPECT_EQ(result.held_out_bits_per_byte, 0);
  EXPECT_EQ(result.tokens, 4 * 128);
}

TEST_F(PublicTraining, ATokenizerIsTakenFromAnotherModel) {
  TrainingOptions words = options("words");
  words.vocab_size = 300;
  train(words);
  TrainingOptions draft = options("draft");
  draft.tokenizer = folder_ / "words";
  train(draft);
  const std::string text = "line 7 of the plain";
  EXPECT_EQ(LanguageModel::load(folder_ / "words").tokenize(text),
            LanguageModel::load(folder_ / "draft").tokenize(text));
}

TEST_F(PublicTraining, AModelOfImagesSaysWhatIsOnThem) {
  nlohmann::json config = testing_support::tiny_json("a");
  config.erase("vocab_size");
  config["image"] = {{"patch", 4}, {"pool", "first"}};
  write_file(folder_ / "config.json", config.dump());
  const auto fonts = std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/train/golden/fonts";
  TrainingOptions images = options("vit");
  images.data = {fonts};
  images.task.name = "images";
  images.settings = R"({"batch_tokens": 256, "learning_rate": 0.01})";
  train(images);
  const ImageModel model = ImageModel::load(folder_ / "vit");
  const std::filesystem::path image = fonts / "test/4/LiberationSerif-Regular-0.png";
  const auto found = model.classify({image, image});
  ASSERT_EQ(found.size(), 2u);
  ASSERT_EQ(found[0].size(), 4u);
  double sum = 0;
  for (size_t i = 0; i < 4; ++i) {
    sum += found[0][i].probability;
    EXPECT_EQ(found[0][i].name, found[1][i].name);
    if (i > 0) {
      EXPECT_LE(found[0][i].probability, found[0][i - 1].probability);
    }
  }
  EXPECT_NEAR(sum, 1, 1e-6);
  EXPECT_THAT(error_of([&] { SoundModel::load(folder_ / "vit"); }),
              HasSubstr("is a model of images, not of sound"));
}

TEST_F(PublicTraining, WhatDoesNotGoTogetherIsRefused) {
  train(options("run"));
  const auto refused = [&](const auto& change) {
    TrainingOptions wrong = options("other");
    change(wrong);
    const std::string message = error_of([&] { train(wrong); });
    EXPECT_FALSE(std::filesystem::exists(folder_ / "other")) << message;
    return message;
  };
  const auto trained = [&](TrainingOptions& o) { o.config = folder_ / "run"; };
  EXPECT_THAT(refused([](auto& o) { o.data.clear(); }), HasSubstr("data: missing"));
  EXPECT_THAT(refused([](auto& o) { o.task.name = "mqar"; }), HasSubstr("needs none"));
  EXPECT_THAT(refused([](auto& o) { o.adapter.rank = 2; }), HasSubstr("a trained model"));
  EXPECT_THAT(refused([](auto& o) { o.masked_diffusion = true; }), HasSubstr("a trained model"));
  EXPECT_THAT(refused([](auto& o) { o.mask_token = 3; }), HasSubstr("mask_token: is for masked"));
  EXPECT_THAT(refused([](auto& o) {
                o.task.name = "captions", o.data = {"a", "b"};
              }),
              HasSubstr("data: must be one folder (with train/captions.tsv"));
  EXPECT_THAT(refused([](auto& o) { o.task.name = "images", o.vocab_size = 300; }),
              HasSubstr("task: needs no tokenizer"));
  EXPECT_THAT(refused([&](auto& o) { o.tokenizer = folder_ / "run", o.vocab_size = 300; }),
              HasSubstr("together with the size of a vocabulary"));
  EXPECT_THAT(refused([&](auto& o) { trained(o), o.vocab_size = 300; }), HasSubstr("vocab_size"));
  EXPECT_THAT(refused([&](auto& o) { trained(o), o.adapter.rank = 2, o.masked_diffusion = true; }),
              HasSubstr("changes all weights"));
  EXPECT_THAT(refused([](auto& o) { o.settings = R"({"windw": 3})"; }), HasSubstr("windw"));
  EXPECT_THAT(error_of([&] { train(options("run")); }), HasSubstr("already holds a training run"));
  // A checkpoint that was published is not what its own tuning overwrites.
  std::filesystem::remove(folder_ / "run" / "training_state.safetensors");
  const std::string weights = read_file(folder_ / "run" / "model.safetensors");
  for (const bool resume : {false, true}) {
    TrainingOptions onto = options("run");
    trained(onto);
    onto.resume = resume;
    EXPECT_THAT(error_of([&] { train(onto); }), HasSubstr("would be overwritten"));
  }
  EXPECT_TRUE(read_file(folder_ / "run" / "model.safetensors") == weights);
}

}  // namespace
}  // namespace pronghorn
