// Models of images: configurations, what their rows see, class tokens and means, gradients, and
// what they refuse.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/slopes.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::error_of;
using testing_support::expect_slope_along_gradients;
using testing_support::Folder;
using testing_support::relative_difference;
using testing_support::run;

constexpr int64_t kClasses = 5;

// Images of 8 by 6 grey pixels in patches of 2: a grid of 3 rows and 4 columns.
nlohmann::json image_json(const std::string& mixer, const std::string& pool = "mean",
                          const std::string& block = "") {
  return parse_json(fmt::format(R"({{"hidden_size": 8, "pattern": "2a", "initializer_range": 0.3,
      "image": {{"patch": 2, "pool": "{}", "width": 8, "height": 6, "channels": 1,
                 "classes": ["a", "b", "c", "d", "e"]}},
      "blocks": {{"a": {{"mixer": {}, "ffn": {{"type": "swiglu", "size": 12}}{}}}}}}})",
                                pool, mixer, block),
                    "test");
}

ModelConfig image_config(const std::string& mixer, const std::string& pool = "mean",
                         const std::string& block = "") {
  return read_pronghorn_config({image_json(mixer, pool, block), "test"});
}

const std::string kAttention = R"({"type": "attention", "heads": 2, "rope": {}})";
const std::string kMamba = R"({"type": "mamba", "state": 4})";
const std::string kSs2d =
    R"({"type": "mamba", "state": 4, "convolution": "grid", "scan_norm": true})";
const std::string kDeltaNet = R"({"type": "gated_deltanet", "heads": 2, "head_dim": 4})";
const std::string kCross = R"(, "scan": "cross")";

struct Kind {
  std::string mixer, pool, block;
};
const std::vector<Kind> kKinds = {{kAttention, "first", ""},  {kAttention, "mean", ""},
                                  {kMamba, "middle", ""},     {kMamba, "mean", kCross},
                                  {kSs2d, "mean", kCross},    {kDeltaNet, "first", ""},
                                  {kDeltaNet, "mean", kCross}};

using Pixels = std::vector<uint8_t>;

Pixels random_pixels(uint64_t seed) {
  Random random(seed, "pixels");
  Pixels pixels(48);
  for (uint8_t& pixel : pixels) pixel = static_cast<uint8_t>(random.below(256));
  return pixels;
}

Batch batch_of(const Model& model, const std::vector<Pixels>& images) {
  const ImageConfig& config = *model.config().image;
  Batch batch;
  std::vector<float> rows(images.size() * static_cast<size_t>(config.rows() * config.features()));
  for (size_t i = 0; i < images.size(); ++i) {
    write_rows(config, images[i].data(), 0, 0,
               rows.data() + i * static_cast<size_t>(config.rows() * config.features()));
    add_image(batch, config);
  }
  batch.embeddings = Tensor::from(rows, {batch.rows(), config.features()});
  return batch;
}

// The scores of the asked row of each image.
std::vector<float> scores(const Model& model, const std::vector<Pixels>& images) {
  const std::vector<float> all = run(model, batch_of(model, images), Precision::f32);
  const ImageConfig& config = *model.config().image;
  std::vector<float> asked;
  for (size_t i = 0; i < images.size(); ++i) {
    const auto row = static_cast<int64_t>(i) * config.rows() + config.asked_row();
    asked.insert(asked.end(), all.begin() + row * kClasses, all.begin() + (row + 1) * kClasses);
  }
  return asked;
}

TEST(ImageModel, ConfigurationsAreWrittenAsTheyAreRead) {
  for (const Kind& kind : kKinds) {
    const ModelConfig config = image_config(kind.mixer, kind.pool, kind.block);
    EXPECT_EQ(config.vocab_size, kClasses);
    const nlohmann::json written = write_pronghorn_config(config);
    EXPECT_EQ(write_pronghorn_config(read_pronghorn_config({written, "again"})), written);
  }
  const nlohmann::json text = write_pronghorn_config(testing_support::tiny_config());
  EXPECT_FALSE(text.contains("image"));
  EXPECT_EQ(text.dump().find("scan"), std::string::npos);
}

TEST(ImageModel, SizesAndClassesComeWithTheImages) {
  nlohmann::json json = image_json(kMamba, "first");
  for (const char* key : {"width", "height", "channels", "classes"}) json["image"].erase(key);
  ModelConfig config = read_pronghorn_config({json, "test"});
  EXPECT_EQ(config.vocab_size, 0);
  set_images(config, 8, 4, 3, {"x", "y"});
  EXPECT_EQ(config.vocab_size, 2);
  EXPECT_EQ(config.image->rows(), 9);
  EXPECT_EQ(config.image->features(), 13);
  EXPECT_THAT(error_of([&] { set_images(config, 8, 8, 3, {"x", "y"}); }), HasSubstr("8 by 8"));
  EXPECT_THAT(error_of([&] { set_images(config, 8, 4, 3, {"x", "z"}); }), HasSubstr("classes"));
  ModelConfig other = read_pronghorn_config({json, "test"});
  EXPECT_THAT(error_of([&] {
                set_images(other, 7, 4, 1, {"x", "y"});
              }),
              HasSubstr("no whole number of patches of 2"));
  ModelConfig text = testing_support::tiny_config();
  EXPECT_THAT(error_of([&] { set_images(text, 8, 4, 1, {"x", "y"}); }), HasSubstr("of texts"));
}

TEST(ImageModel, RefusesWhatImagesHaveNoUseFor) {
  const auto refusal = [](const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json json = image_json(kMamba);
    change(json);
    return error_of([&] { Model(read_pronghorn_config({json, "test"}), 1); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "no error");
  EXPECT_THAT(refusal([](auto& j) { j["tie_embeddings"] = true; }), HasSubstr("tie_embeddings"));
  EXPECT_THAT(refusal([](auto& j) { j["mtp"] = {{"heads", 1}}; }), HasSubstr("mtp"));
  EXPECT_THAT(refusal([](auto& j) { j["prefix_tokens"] = 2; }), HasSubstr("prefix_tokens"));
  EXPECT_THAT(refusal([](auto& j) { j["learned_positions"] = 12; }), HasSubstr("is for texts"));
  EXPECT_THAT(refusal([](auto& j) { j["diffusion"] = nlohmann::json::object(); }),
              HasSubstr("masked tokens"));
  EXPECT_THAT(refusal([](auto& j) { j["vocab_size"] = 6; }), HasSubstr("6 with 5 classes"));
  EXPECT_THAT(refusal([](auto& j) { j["image"]["width"] = 7; }), HasSubstr("7 by 6"));
  EXPECT_THAT(refusal([](auto& j) { j["image"]["channels"] = 2; }), HasSubstr("1 is grey"));
  EXPECT_THAT(refusal([](auto& j) { j["image"].erase("channels"); }), HasSubstr("together"));
  EXPECT_THAT(refusal([](auto& j) { j["image"]["classes"] = {"a", "a"}; }), HasSubstr("twice"));
  EXPECT_THAT(refusal([](auto& j) { j["image"]["pool"] = "last"; }), HasSubstr("pool"));
  EXPECT_THAT(refusal([](auto& j) { j["blocks"]["a"]["scan"] = "spiral"; }), HasSubstr("scan"));
  EXPECT_THAT(refusal([](auto& j) {
                j["image"]["pool"] = "first";
                j["blocks"]["a"]["mixer"]["convolution"] = "grid";
              }),
              HasSubstr("blocks.a.mixer.convolution"));
  EXPECT_THAT(refusal([](auto& j) {
                j["blocks"]["a"]["mixer"] = {
                    {"type", "attention"}, {"heads", 2}, {"rope", {{"rotary_dim", 2}}}};
              }),
              HasSubstr("blocks.a.mixer.rope.rotary_dim"));
  nlohmann::json text = testing_support::tiny_json("a");
  text["blocks"]["a"]["scan"] = "both";
  EXPECT_THAT(error_of([&] {
                read_pronghorn_config({text, "test"});
              }),
              HasSubstr("models of images"));
}

TEST(ImageModel, EveryPatchIsSeenFromEverySide) {
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(kind.mixer + kind.pool + kind.block);
    const Model model(image_config(kind.mixer, kind.pool, kind.block), 3);
    const Pixels image = random_pixels(1);
    const std::vector<float> before = scores(model, {image});
    for (const size_t corner : {size_t{0}, size_t{7}, size_t{40}, size_t{47}}) {
      Pixels changed = image;
      changed[corner] = static_cast<uint8_t>(changed[corner] ^ 0x80);
      EXPECT_NE(bit_difference(scores(model, {changed}), before), "") << corner;
    }
  }
}

TEST(ImageModel, ImagesOfABatchDoNotSeeEachOther) {
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(kind.mixer + kind.pool + kind.block);
    const Model model(image_config(kind.mixer, kind.pool, kind.block), 3);
    std::vector<float> apart;
    std::vector<Pixels> images;
    for (uint64_t i = 0; i < 3; ++i) {
      images.push_back(random_pixels(i));
      const std::vector<float> alone = scores(model, {images.back()});
      apart.insert(apart.end(), alone.begin(), alone.end());
    }
    // f32 sums in another order.
    EXPECT_LT(relative_difference(scores(model, images), apart), 2e-5);
  }
}

// With a mean of rows and no positions, attention does not care about the order of patches, and
// scans do.
TEST(ImageModel, PositionsTellPlacesApart) {
  // Patches in the opposite order; pixels within a patch as they are.
  Pixels image = random_pixels(1), turned(48);
  for (int64_t patch = 0; patch < 12; ++patch) {
    const int64_t to = 11 - patch;
    for (int64_t y = 0; y < 2; ++y) {
      for (int64_t x = 0; x < 2; ++x) {
        turned[static_cast<size_t>((to / 4 * 2 + y) * 8 + to % 4 * 2 + x)] =
            image[static_cast<size_t>((patch / 4 * 2 + y) * 8 + patch % 4 * 2 + x)];
      }
    }
  }
  const auto difference = [&](const std::string& mixer, bool learned) {
    nlohmann::json json = image_json(mixer);
    json["image"]["learned_positions"] = learned;
    const Model model(read_pronghorn_config({json, "test"}), 3);
    return relative_difference(scores(model, {turned}), scores(model, {image}));
  };
  const std::string plain = R"({"type": "attention", "heads": 2})";
  constexpr double kRounding = 2e-5;
  EXPECT_LT(difference(plain, false), kRounding);
  EXPECT_GT(difference(plain, true), 1e-3);
  EXPECT_GT(difference(kAttention, false), 1e-3);
  // Raster both ways turns round with the image but for weights of their own.
  EXPECT_GT(difference(kMamba, false), 1e-3);
}

TEST(ImageModel, GradientsAreThoseOfTheLoss) {
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(kind.mixer + kind.pool + kind.block);
    const Model model(image_config(kind.mixer, kind.pool, kind.block), 3);
    const Batch batch = batch_of(model, {random_pixels(1), random_pixels(2)});
    std::vector<int32_t> targets(static_cast<size_t>(batch.rows()), -1);
    targets[static_cast<size_t>(model.config().image->asked_row())] = 1;
    targets[static_cast<size_t>(model.config().image->rows() + model.config().image->asked_row())] =
        4;
    const auto loss = [&](Tape* tape) {
      Context context;
      context.tape = tape;
      const Tensor hidden = model.forward(context, batch);
      return model.cross_entropy(context, hidden, targets, 0.5, 0).nll / 2;
    };
    Tape tape;
    loss(&tape);
    tape.run_backward();
    expect_slope_along_gradients(model, loss, 2e-3);
  }
}

TEST(ImageModel, IsLoadedAsItWasSaved) {
  const Folder folder;
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(kind.mixer + kind.pool + kind.block);
    const Model model(image_config(kind.mixer, kind.pool, kind.block), 3);
    model.save(folder.path());
    const auto loaded = Model::load(folder.path());
    EXPECT_EQ(loaded->parameter_count(), model.parameter_count());
    EXPECT_EQ(loaded->config().image->classes.size(), 5u);
    EXPECT_EQ(
        bit_difference(scores(*loaded, {random_pixels(1)}), scores(model, {random_pixels(1)})), "");
    std::filesystem::remove_all(folder.path());
    std::filesystem::create_directories(folder.path());
  }
}

TEST(ImageModel, RefusesTextsStatesAndPartsOfImages) {
  const Model model(image_config(kMamba), 3);
  Batch text;
  add_fresh_segment(text, std::vector<int32_t>(12, 1));
  EXPECT_THAT(error_of([&] { model.forward({}, text); }), HasSubstr("tokens in place of patches"));
  Batch batch = batch_of(model, {random_pixels(1)});
  SequenceState state = model.new_state();
  batch.segments[0].state = &state;
  EXPECT_THAT(error_of([&] { model.forward({}, batch); }), HasSubstr("with a state"));
  batch = batch_of(model, {random_pixels(1)});
  batch.embeddings = Tensor::zeros({12, 5});
  EXPECT_THAT(error_of([&] { model.forward({}, batch); }), HasSubstr("patches of 4 numbers"));
  Batch part;
  part.embeddings = Tensor::zeros({11, 4});
  part.positions.assign(11, 0);
  part.segments.push_back({nullptr, 0, 11});
  EXPECT_THAT(error_of([&] { model.forward({}, part); }), HasSubstr("11 rows in place of 12"));
}

TEST(ImageModel, RowsArePatchesAndAClassToken) {
  const ImageConfig config = *image_config(kMamba, "middle").image;
  EXPECT_EQ(config.rows(), 13);
  EXPECT_EQ(config.token_row(), 6);
  Pixels pixels(48);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i);
  std::vector<float> rows(13 * 5);
  write_rows(config, pixels.data(), 0, 0, rows.data());
  const auto pixel = [](int value) { return static_cast<float>(value) / 127.5f - 1; };
  // The second patch: columns 2 and 3 of the first two rows of 8.
  EXPECT_THAT(std::vector<float>(rows.begin() + 5, rows.begin() + 10),
              testing::ElementsAre(pixel(2), pixel(3), pixel(10), pixel(11), 0));
  EXPECT_THAT(std::vector<float>(rows.begin() + 30, rows.begin() + 35),
              testing::ElementsAre(0, 0, 0, 0, 1));
  // Moved right by one and down by two: what comes in are the pixels of the edge.
  write_rows(config, pixels.data(), 1, 2, rows.data());
  EXPECT_THAT(std::vector<float>(rows.begin(), rows.begin() + 5),
              testing::ElementsAre(pixel(0), pixel(0), pixel(0), pixel(0), 0));
  const float* last = rows.data() + 12 * 5;
  EXPECT_EQ(last[0], pixel(2 * 8 + 5));
  EXPECT_EQ(last[3], pixel(3 * 8 + 6));
  Batch batch;
  add_image(batch, config);
  EXPECT_EQ(batch.coordinates[2 * 6], -1);
  EXPECT_EQ(batch.coordinates[2 * 7], 1);  // the seventh patch: row 1, column 2
  EXPECT_EQ(batch.coordinates[2 * 7 + 1], 2);
}

}  // namespace
}  // namespace pronghorn
