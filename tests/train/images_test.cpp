// Folders of images, examples of them, and a model that learns what is on them.
#include "train/images.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/files.h"
#include "support/errors.h"
#include "support/folder.h"
#include "train/evaluate.h"
#include "train/trainer.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;

const std::filesystem::path kFonts =
    std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/train/golden/fonts";

// A folder of images of 4 by 2 pixels, in train/ and test/.
class ImagesTest : public testing::Test {
 protected:
  ImagesTest() {
    put("train/bright/1.pgm", image(200));
    put("train/bright/2.pgm", image(210));
    put("train/dark/1.pgm", image(10));
    put("train/dark/notes.txt", "no image");
    put("train/dark/.hidden.pgm", "no image");
    put("test/dark/3.pgm", image(20));
    put("test/bright/4.pgm", image(220));
  }

  static std::string image(int value) {
    return "P5 4 2 255\n" + std::string(8, static_cast<char>(value));
  }
  void put(const std::string& name, const std::string& bytes) {
    std::filesystem::create_directories((folder_ / name).parent_path());
    write_file(folder_ / name, bytes);
  }
  std::string refusal() const {
    return error_of([&] { read_image_folder(folder_.path()); });
  }

  Folder folder_;
};

TEST_F(ImagesTest, SubFoldersAreClasses) {
  const ImageFolder images = read_image_folder(folder_.path());
  EXPECT_THAT(images.train.classes, ElementsAre("bright", "dark"));
  EXPECT_THAT(images.train.labels, ElementsAre(0, 0, 1));
  EXPECT_THAT(images.test.labels, ElementsAre(0, 1));
  EXPECT_EQ(images.train.width, 4);
  EXPECT_EQ(images.train.height, 2);
  EXPECT_EQ(images.train.image(2)[7], 10);
  EXPECT_EQ(images.test.image(0)[0], 220);
  const std::string before = images.identity();
  put("test/dark/3.pgm", image(21));
  EXPECT_NE(read_image_folder(folder_.path()).identity(), before);
}

TEST_F(ImagesTest, RefusesWhatDoesNotFit) {
  put("train/dark/5.pgm", "P5 2 4 255\n12345678");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("5.pgm"), HasSubstr("2 by 4"), HasSubstr("4 by 2")));
  put("train/dark/5.pgm", "P5 4 2 255\n1234");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("5.pgm"), HasSubstr("ends after 4 of the 8")));
  std::filesystem::remove(folder_ / "train/dark/5.pgm");
  put("test/grey/5.pgm", image(100));
  EXPECT_THAT(refusal(), HasSubstr("not one of the 2 classes"));
  std::filesystem::remove_all(folder_ / "test");
  EXPECT_THAT(refusal(), HasSubstr("has no folder"));
  std::filesystem::create_directories(folder_ / "test");
  EXPECT_THAT(refusal(), HasSubstr("has no folders of images"));
  std::filesystem::create_directories(folder_ / "test/dark");
  EXPECT_THAT(refusal(), HasSubstr("has no images"));
  put("test/dark/1.pgm", "P5 2 2 255\n1234");
  EXPECT_THAT(refusal(), HasSubstr("2 by 2"));
}

ModelConfig config_for(const ImageFolder& images, const std::string& mixer, const std::string& pool,
                       int64_t patch) {
  nlohmann::json json = parse_json(
      R"({"hidden_size": 24, "pattern": "2a", "blocks": {"a": {"ffn": {"type": "swiglu", "size": 48}}}})",
      "test");
  json["image"] = {{"patch", patch}, {"pool", pool}};
  json["blocks"]["a"]["mixer"] = parse_json(mixer, "test");
  ModelConfig config = read_pronghorn_config({json, "test"});
  const ImageSet& set = images.train;
  set_images(config, set.width, set.height, set.channels, set.classes);
  return config;
}

constexpr const char* kAttention = R"({"type": "attention", "heads": 2})";

TEST_F(ImagesTest, EpochsVisitEveryImageOnce) {
  const ImageFolder images = read_image_folder(folder_.path());
  const ModelConfig config = config_for(images, kAttention, "first", 2);
  ImageSource source(*config.image, images, 1, 7);
  EXPECT_EQ(source.length(), 3);
  std::vector<int32_t> tokens(3), targets(3);
  std::set<int32_t> moved;
  for (uint64_t epoch = 0; epoch < 30; ++epoch) {
    std::map<int32_t, int> seen;
    for (uint64_t i = 0; i < 3; ++i) {
      source.fill(3 * epoch + i, tokens, targets);
      EXPECT_EQ(targets[1], -1);
      const int32_t image = tokens[0] / 9;
      ++seen[image];
      EXPECT_EQ(targets[0], images.train.labels[static_cast<size_t>(image)]);
      moved.insert(tokens[0] % 9);
    }
    EXPECT_EQ(seen.size(), 3u);
  }
  EXPECT_EQ(moved.size(), 9u);  // all places, of 90 draws
  source.fill(kHeldOutExamples + 1, tokens, targets);
  EXPECT_EQ(targets[0], 1);
  const Batch batch = source.batch(tokens);
  EXPECT_EQ(batch.rows(), 3);
  // Not moved: the pixels of test/dark, and no part of a class token.
  EXPECT_THAT(batch.embeddings.row_slice(1, 1).read(),
              testing::Each(testing::AnyOf(20.0f / 127.5f - 1, 0.0f)));
}

TEST(Images, AreLearnt) {
  const ImageFolder images = read_image_folder(kFonts);
  ASSERT_THAT(images.train.classes, ElementsAre("0", "1", "4", "7"));
  const std::string ss2d =
      R"({"type": "mamba", "state": 4, "convolution": "grid", "scan_norm": true})";
  const std::vector<std::pair<std::string, std::string>> kinds = {
      {kAttention, "first"}, {R"({"type": "mamba", "state": 4})", "middle"}, {ss2d, "mean"}};
  for (const auto& [mixer, pool] : kinds) {
    SCOPED_TRACE(mixer);
    const ModelConfig config = config_for(images, mixer, pool, 4);
    const Folder folder;
    int runs = 0;
    const auto trained = [&](int64_t steps) {
      auto model = std::make_unique<Model>(config, 1);
      ImageSource source(*config.image, images, 1, 1);
      TrainRun run;
      run.config.window = source.length();
      run.config.batch_tokens = 16 * source.length();
      run.config.micro_batch_tokens = 16 * source.length();
      run.config.learning_rate = 5e-3;
      run.config.precision = Precision::f32;
      run.config.image_shift = 1;
      run.budget.steps = steps;
      run.directory = folder / std::to_string(++runs);
      run.data_identity = images.identity();
      const double accuracy = train(*model, source, nullptr, nullptr, run).accuracy.value_or(0);
      return std::pair(std::move(model), accuracy);
    };
    const auto [model, accuracy] = trained(250);
    // By chance a quarter; of 16 images of fonts that it has not seen.
    EXPECT_GT(accuracy, 0.6);

    // What classify() says is what the accuracy counts.
    std::vector<Image> test;
    for (int64_t i = 0; i < images.test.size(); ++i) {
      const uint8_t* pixels = images.test.image(i);
      test.push_back({images.test.width,
                      images.test.height,
                      images.test.channels,
                      {pixels, pixels + images.test.image_bytes()}});
    }
    const auto scores = classify(*model, Precision::f32, test);
    int64_t right = 0;
    for (size_t i = 0; i < scores.size(); ++i) {
      const auto best = std::ranges::max_element(scores[i]) - scores[i].begin();
      right += best == images.test.labels[i] ? 1 : 0;
      double sum = 0;
      for (const double score : scores[i]) sum += std::exp(score);
      EXPECT_NEAR(sum, 1, 1e-9);
    }
    EXPECT_NEAR(static_cast<double>(right) / static_cast<double>(scores.size()), accuracy, 1e-9);
    test.front().width = 8;
    test.front().height = 32;
    EXPECT_THAT(error_of([&, &model = model] { classify(*model, Precision::f32, test); }),
                HasSubstr("8 by 32"));

    const auto [one, ignored] = trained(5);
    const auto [other, ignored_too] = trained(5);
    for (size_t i = 0; i < one->parameters().size(); ++i) {
      EXPECT_EQ(one->parameters()[i].value.read(), other->parameters()[i].value.read());
    }
  }
}

}  // namespace
}  // namespace pronghorn
