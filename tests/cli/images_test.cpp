// Models of images from end to end: trained, resumed, judged, asked and compared.
#include <gmock/gmock.h>

#include "cli/command.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_cli::CliTest;

class ImagesCliTest : public CliTest {
 protected:
  ImagesCliTest() {
    fonts_ = (std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/train/golden/fonts").string();
    nlohmann::json json = config("a");
    json.erase("vocab_size");
    json["image"] = {{"patch", 4}, {"pool", "first"}};
    put("vit.json", json.dump());
    json = config("m");
    json.erase("vocab_size");
    json["image"] = {{"patch", 4}};
    json["blocks"]["m"]["scan"] = "cross";
    put("scans.json", json.dump());
  }

  std::string fonts_;
};

TEST_F(ImagesCliTest, TrainsJudgesAndClassifies) {
  for (const std::string name : {"vit", "scans"}) {
    SCOPED_TRACE(name);
    const std::vector<std::string> train = {"train",  name + ".json", "--task",  "images",
                                            "--data", fonts_,         "--steps", "6"};
    auto whole = train;
    whole.insert(whole.end(), {"--out", name});
    const auto trained = json_of(whole);
    EXPECT_TRUE(trained["accuracy"].is_number());
    EXPECT_TRUE(std::filesystem::exists(folder_ / name / "log.jsonl"));
    const auto eval = json_of({"eval", name, "--task", "images", "--data", fonts_});
    EXPECT_EQ(eval["images"], 16);
    EXPECT_NEAR(eval["chance"].get<double>(), 0.25, 1e-9);
    const std::string image = fonts_ + "/test/4/LiberationSerif-Regular-0.png";
    const auto classes = json_of({"classify", name, image, image});
    ASSERT_EQ(classes.size(), 2u);
    EXPECT_EQ(classes[0]["classes"].size(), 3u);
    EXPECT_EQ(classes[0]["classes"], classes[1]["classes"]);
    EXPECT_THAT(output_of({"classify", name, image, "--top", "1"}), HasSubstr("%"));
  }
  put("x.png", "no image");
  EXPECT_THAT(failure_of(1, {"classify", "vit", "x.png"}), HasSubstr("x.png: is no image"));
  for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{
           {"generate", "vit", "--prompt", "a"},
           {"chat", "vit"},
           {"eval", "vit", "--data", "text.txt"},
           {"logits", "vit", "--tokens", "1 2", "--out", "l.npy"},
           {"bench", "vit"},
           {"bench", "vit.json"},
           {"bench", "vit", "--draft", "ngram", "--text", "text.txt"},
           {"inspect", "vit", "--text", "text.txt"},
           {"train", "vit", "--data", "text.txt", "--out", "x", "--steps", "1"},
           {"linearise", "vit", "--pattern", "2l", "--data", "text.txt", "-o", "x", "--steps", "1"},
           {"extend", "vit", "--context", "99", "--data", "text.txt", "-o", "x", "--steps", "1"}}) {
    EXPECT_THAT(
        failure_of(1, command),
        AllOf(HasSubstr("is a model of images, which reads no texts"), HasSubstr("classify")))
        << command[0];
  }
}

TEST_F(ImagesCliTest, WritesCaptions) {
  std::filesystem::create_directories(folder_ / "captions/train");
  std::filesystem::create_directories(folder_ / "captions/test");
  for (const auto& [part, name] : {std::pair("train", "DejaVuSans"), {"test", "LiberationSans"}}) {
    std::string lines;
    for (const std::string digit : {"0", "1", "4", "7"}) {
      for (const std::string style : {"", "-Bold"}) {
        const std::string middle =
            std::string(name) + (part == std::string("test") && style.empty() ? "-Regular" : style);
        const std::string file = fmt::format("{}-{}.png", digit, middle);
        std::filesystem::copy_file(fmt::format("{}/{}/{}/{}-0.png", fonts_, part, digit, middle),
                                   folder_ / "captions" / part / file);
        lines += fmt::format("{}\tthe digit {}{}\n", file, digit, style.empty() ? "" : ", bold");
      }
    }
    put(std::string("captions/") + part + "/captions.tsv", lines);
  }
  nlohmann::json json = config("a m");
  json.erase("vocab_size");
  json["vision"] = {{"patch", 4}, {"width", 16}, {"height", 16}, {"channels", 1}};
  put("vision.json", json.dump());
  const auto trained = json_of({"train", "vision.json", "--task", "captions", "--data", "captions",
                                "--steps", "6", "--out", "seeing"});
  EXPECT_TRUE(trained["accuracy"].is_number());
  const auto eval = json_of({"eval", "seeing", "--task", "captions", "--data", "captions"});
  EXPECT_EQ(eval["images"], 8);
  EXPECT_EQ(eval["tokens"], 4 * (12 + 18));  // "the digit 0\n" and "the digit 0, bold\n"
  const std::string image = fonts_ + "/test/4/LiberationSans-Bold-0.png";
  const std::vector<std::string> generate = {"generate", "seeing", "--image", image,
                                             "--prompt", "the ",   "-n",      "5"};
  const auto text = json_of(generate);
  EXPECT_EQ(text["context"], 16 + 4 + 5);
  EXPECT_EQ(json_of(generate)["text"], text["text"]);
  EXPECT_THAT(failure_of(2, {"generate", "seeing", "--image", image}), HasSubstr("--prompt"));
  EXPECT_THAT(failure_of(1, {"train", "tiny.json", "--task", "captions", "--data", "captions",
                             "--steps", "1", "--out", "x"}),
              HasSubstr("sees no images"));
  put("captions/test/captions.tsv", "no caption\n");
  EXPECT_THAT(failure_of(1, {"eval", "seeing", "--task", "captions", "--data", "captions"}),
              HasSubstr("line 1: is not FILE<TAB>CAPTION"));
  // A list names files of its folder, as that of sounds does.
  for (const std::string name : {"../train/0-DejaVuSans.png", image.c_str()}) {
    put("captions/test/captions.tsv", name + "\tthe digit 0\n");
    EXPECT_THAT(failure_of(1, {"eval", "seeing", "--task", "captions", "--data", "captions"}),
                HasSubstr("no file in the folder"));
  }
}

TEST_F(ImagesCliTest, RefusesWhatDoesNotFit) {
  EXPECT_THAT(
      failure_of(2, {"train", "vit.json", "--task", "images", "--out", "x", "--steps", "1"}),
      HasSubstr("train/CLASS"));
  EXPECT_THAT(
      failure_of(1, {"train", "vit.json", "--data", "text.txt", "--out", "x", "--steps", "1"}),
      HasSubstr("the task \"images\""));
  EXPECT_THAT(failure_of(1, {"train", "tiny.json", "--task", "images", "--data", fonts_, "--out",
                             "x", "--steps", "1"}),
              HasSubstr("model of texts"));
  EXPECT_THAT(failure_of(1, {"train", "vit.json", "--task", "images", "--data", ".", "--out", "x",
                             "--steps", "1"}),
              AllOf(HasSubstr("has no folder"), HasSubstr("train")));
  EXPECT_THAT(failure_of(1, {"compare", "tiny.json", "--task", "images", "--data", fonts_, "--out",
                             "c", "--tokens", "100"}),
              HasSubstr("not of images"));
}

TEST_F(ImagesCliTest, ConfigurationsHaveAMillionParameters) {
  const auto folder = std::filesystem::path(PRONGHORN_SOURCE_DIR) / "configs/images";
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const auto inspected = json_of({"inspect", entry.path().string()});
    // Each within 3 percent of the others.
    EXPECT_NEAR(inspected["parameters"].get<double>(), 0.977e6, 0.03 * 0.977e6) << entry.path();
    EXPECT_EQ(inspected["contexts"].size(), 1u);
    EXPECT_THAT(output_of({"inspect", entry.path().string()}), HasSubstr("32 x 32 x 1"));
    ++count;
  }
  EXPECT_EQ(count, 3);
}

TEST_F(ImagesCliTest, Compares) {
  const std::vector<std::string> compare = {"compare", "vit.json", "scans.json", "--task",
                                            "images",  "--data",   fonts_,       "--out",
                                            "c",       "--tokens", "2000"};
  const auto run = json_of(compare);
  ASSERT_EQ(run["architectures"].size(), 2u);
  for (const auto& one : run["architectures"]) {
    EXPECT_TRUE(one["failure"].is_null()) << one["failure"];
    EXPECT_GT(one["images"]["images_per_second"].get<double>(), 0);
  }
  EXPECT_THAT(output_of(compare), AllOf(HasSubstr("accuracy"), HasSubstr("images/s")));
}

}  // namespace
}  // namespace pronghorn
