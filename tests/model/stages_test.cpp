// Hierarchical models of images: stages at 1/4, 1/8, ... of the resolution with merged patches
// between them; configurations, a whole model against a loop in float64, gradients, costs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "base/random.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/slopes.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::error_of;
using testing_support::expect_slope_along_gradients;
using testing_support::Folder;
using testing_support::relative_difference;
using testing_support::run;

constexpr int64_t kClasses = 3, kWidth = 12, kHeight = 10;

// Images of 12 by 10 grey pixels in patches of 2: grids of 5 x 6, 3 x 3 and 2 x 2.
nlohmann::json stages_json(const std::string& a, const std::string& b, const std::string& c) {
  return parse_json(
      fmt::format(R"x({{"hidden_size": 6, "pattern": "a(2b(c))", "initializer_range": 0.3,
      "norm": {{"type": "layer_norm", "bias": true}},
      "subsample": {{"type": "patch_merging"}},
      "image": {{"patch": 2, "width": 12, "height": 10, "channels": 1,
                 "learned_positions": false, "classes": ["x", "y", "z"]}},
      "blocks": {{"a": {}, "b": {}, "c": {}}}}})x",
                  a, b, c),
      "test");
}

const std::string kSs2d =
    R"({"mixer": {"type": "mamba", "state": 3, "convolution": "grid", "scan_norm": true},
        "scan": "cross", "ffn": {"type": "gelu", "size": 10}})";
const std::string kDelta =
    R"({"mixer": {"type": "gated_deltanet", "heads": 2, "head_dim": 4}, "scan": "cross"})";
const std::string kFeedForward = R"({"ffn": {"type": "mlp", "size": 7, "activation": "relu"}})";

ModelConfig stages(const std::string& a = kSs2d, const std::string& b = kSs2d,
                   const std::string& c = kSs2d) {
  return read_pronghorn_config({stages_json(a, b, c), "test"});
}

using Pixels = std::vector<uint8_t>;

Pixels random_pixels(uint64_t seed) {
  Random random(seed, "pixels");
  Pixels pixels(static_cast<size_t>(kWidth * kHeight));
  for (uint8_t& pixel : pixels) pixel = static_cast<uint8_t>(random.below(256));
  return pixels;
}

Batch batch_of(const ImageConfig& config, const std::vector<Pixels>& images) {
  Batch batch;
  const auto size = static_cast<size_t>(config.rows() * config.features());
  std::vector<float> rows(images.size() * size);
  for (size_t i = 0; i < images.size(); ++i) {
    write_rows(config, images[i].data(), 0, 0, rows.data() + i * size);
    add_image(batch, config);
  }
  batch.embeddings = Tensor::from(rows, {batch.rows(), config.features()});
  return batch;
}

// The scores of each image.
std::vector<float> scores(const Model& model, const std::vector<Pixels>& images) {
  const ImageConfig& config = *model.config().image;
  const std::vector<float> all = run(model, batch_of(config, images), Precision::f32);
  std::vector<float> asked;
  for (size_t i = 0; i < images.size(); ++i) {
    const auto at = all.begin() + static_cast<int64_t>(i) * config.rows() * kClasses;
    asked.insert(asked.end(), at, at + kClasses);
  }
  return asked;
}

TEST(Stages, EachIsTwiceAsWideUnlessItSaysOtherwise) {
  const ModelConfig config = stages();
  EXPECT_THAT(config.subsample.widths, ElementsAre(12, 24));
  EXPECT_EQ(config.block_width('a'), 6);
  EXPECT_EQ(config.block_width('b'), 12);
  EXPECT_EQ(config.block_width('c'), 24);
  EXPECT_EQ(config.output_size(), 24);
  const nlohmann::json written = write_pronghorn_config(config);
  EXPECT_EQ(write_pronghorn_config(read_pronghorn_config({written, "again"})), written);
  nlohmann::json json = stages_json(kSs2d, kSs2d, kSs2d);
  json["subsample"]["width"] = {10, 8};
  EXPECT_EQ(read_pronghorn_config({json, "test"}).output_size(), 8);
  const Model model(config, 1);
  std::map<std::string, Shape> shapes;
  for (const Parameter& parameter : model.parameters()) shapes[parameter.name] = parameter.shape;
  EXPECT_EQ(shapes.at("spans.0.reduction.weight"), (Shape{12, 24}));
  EXPECT_EQ(shapes.at("spans.0.norm.weight"), (Shape{24}));
  EXPECT_EQ(shapes.at("spans.1.reduction.weight"), (Shape{24, 48}));
  EXPECT_EQ(shapes.at("layers.0.mixer_norm.weight"), (Shape{6}));
  EXPECT_EQ(shapes.at("layers.3.ffn.up_proj.weight"), (Shape{10, 24}));
  EXPECT_EQ(shapes.at("lm_head.weight"), (Shape{kClasses, 24}));
}

TEST(Stages, RefusesWhatIsNoRowOfStages) {
  const auto refusal = [](const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json json = stages_json(kSs2d, kSs2d, kSs2d);
    change(json);
    return error_of([&] { Model(read_pronghorn_config({json, "test"}), 1); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "no error");
  EXPECT_THAT(refusal([](auto& j) { j["pattern"] = "a(b)(c)"; }), HasSubstr("goes on after"));
  EXPECT_THAT(refusal([](auto& j) { j["pattern"] = "a(b(c)b)"; }), HasSubstr("goes on after"));
  EXPECT_THAT(refusal([](auto& j) { j["pattern"] = "a(b(a c))"; }),
              HasSubstr("blocks.a: stands in rows of 6 and of 24"));
  EXPECT_THAT(refusal([](auto& j) { j["image"]["pool"] = "first"; }), HasSubstr("class token"));
  EXPECT_THAT(refusal([](auto& j) { j["subsample"]["width"] = {8}; }), HasSubstr("1 widths for 2"));
  EXPECT_THAT(refusal([](auto& j) { j["subsample"]["rate"] = 2; }), HasSubstr("rate"));
  EXPECT_THAT(refusal([](auto& j) { j["hidden_size"] = 1 << 16; }), HasSubstr("too wide"));
  EXPECT_THAT(refusal([](auto& j) {
                j.erase("image");
                j["vocab_size"] = 3;
              }),
              HasSubstr("which only images have"));
  EXPECT_THAT(refusal([](auto& j) {
                j["subsample"] = {{"type", "zipformer"}, {"rate", 2}};
              }),
              HasSubstr("in a model of images"));
  const Model model(stages(), 1);
  EXPECT_THAT(error_of([&] { model.check_exit(1, "exit"); }), HasSubstr("another stage"));
  EXPECT_THAT(error_of([&] { model.check_exit(2, "exit"); }), HasSubstr("inside"));
}

// A whole model of feed-forwards, which are simple, in float64: embedding, stages, the mean,
// scores.
class Reference {
 public:
  using Rows = std::vector<std::vector<double>>;

  explicit Reference(const Model& model) {
    for (const Parameter& parameter : model.parameters()) {
      const PooledVector<float> values = parameter.value.read();
      weights_[parameter.name].assign(values.begin(), values.end());
    }
  }

  std::vector<double> scores(const std::vector<float>& patches) const {
    int64_t height = 5, width = 6;
    Rows rows;
    for (size_t i = 0; i < patches.size(); i += 4) {
      rows.push_back(product("patch_embeddings.weight",
                             {patches.begin() + int64_t(i), patches.begin() + int64_t(i) + 4}));
      add(rows.back(), weights_.at("patch_embeddings.bias"));
    }
    feed(rows, 0);
    for (int64_t span = 0; span < 2; ++span) {
      rows = merged(rows, height, width, fmt::format("spans.{}.", span));
      height = (height + 1) / 2;
      width = (width + 1) / 2;
      if (span == 0) feed(rows, 1);
      feed(rows, span == 0 ? 2 : 3);
    }
    std::vector<double> mean(rows[0].size());
    for (const std::vector<double>& row : rows) add(mean, norm(row, "norm."));
    for (double& value : mean) value /= static_cast<double>(rows.size());
    return product("lm_head.weight", mean);
  }

 private:
  static void add(std::vector<double>& to, const std::vector<double>& values) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += values[i];
  }

  std::vector<double> product(const std::string& name, const std::vector<double>& x) const {
    const std::vector<double>& matrix = weights_.at(name);
    std::vector<double> y(matrix.size() / x.size());
    for (size_t i = 0; i < matrix.size(); ++i) y[i / x.size()] += matrix[i] * x[i % x.size()];
    return y;
  }

  std::vector<double> norm(std::vector<double> x, const std::string& name) const {
    double mean = 0, square = 0;
    for (const double value : x) mean += value / static_cast<double>(x.size());
    for (const double value : x) {
      square += (value - mean) * (value - mean) / static_cast<double>(x.size());
    }
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = (x[i] - mean) / std::sqrt(square + 1e-5) * weights_.at(name + "weight")[i] +
             weights_.at(name + "bias")[i];
    }
    return x;
  }

  void feed(Rows& rows, int64_t layer) const {
    const std::string name = fmt::format("layers.{}.", layer);
    for (std::vector<double>& row : rows) {
      std::vector<double> inside =
          product(name + "ffn.up_proj.weight", norm(row, name + "ffn_norm."));
      for (double& value : inside) value = std::max(value, 0.0);
      add(row, product(name + "ffn.down_proj.weight", inside));
    }
  }

  Rows merged(const Rows& rows, int64_t height, int64_t width, const std::string& name) const {
    Rows result;
    for (int64_t top = 0; top < height; top += 2) {
      for (int64_t left = 0; left < width; left += 2) {
        std::vector<double> side_by_side;
        for (int64_t corner = 0; corner < 4; ++corner) {
          const int64_t y = top + corner % 2, x = left + corner / 2;
          const bool inside = y < height && x < width;
          for (size_t c = 0; c < rows[0].size(); ++c) {
            side_by_side.push_back(inside ? rows[static_cast<size_t>(y * width + x)][c] : 0);
          }
        }
        result.push_back(product(name + "reduction.weight", norm(side_by_side, name + "norm.")));
      }
    }
    return result;
  }

  std::map<std::string, std::vector<double>> weights_;
};

TEST(Stages, AModelIsThatOfTheDefinition) {
  const Model model(stages(kFeedForward, kFeedForward, kFeedForward), 5);
  Random random(5, "weights");
  for (const Parameter& parameter : model.parameters()) {
    PooledVector<float> values = parameter.value.read();
    for (float& value : values) value += float(random.uniform(-0.2, 0.2));
    parameter.value.write(values);
  }
  const Reference reference(model);
  std::vector<Pixels> images = {random_pixels(1), random_pixels(2)};
  const std::vector<float> actual = scores(model, images);
  const ImageConfig& config = *model.config().image;
  for (size_t i = 0; i < images.size(); ++i) {
    std::vector<float> rows(static_cast<size_t>(config.rows() * config.features()));
    write_rows(config, images[i].data(), 0, 0, rows.data());
    const std::vector<double> expected = reference.scores(rows);
    for (size_t c = 0; c < kClasses; ++c) {
      // Some hundred roundings of f32 to numbers of up to ten.
      EXPECT_NEAR(double{actual[i * kClasses + c]}, expected[c], 1e-4) << i << ", " << c;
    }
  }
}

struct Kind {
  std::string a, b, c;
};
const std::vector<Kind> kKinds = {{kSs2d, kSs2d, kSs2d}, {kDelta, kSs2d, kFeedForward}};

TEST(Stages, ImagesOfABatchDoNotSeeEachOther) {
  for (const Kind& kind : kKinds) {
    const Model model(stages(kind.a, kind.b, kind.c), 3);
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

TEST(Stages, EveryCornerOfAnImageCounts) {
  const Model model(stages(), 3);
  const Pixels image = random_pixels(1);
  const std::vector<float> before = scores(model, {image});
  for (const int64_t corner :
       {int64_t{0}, kWidth - 1, kWidth * (kHeight - 1), kWidth * kHeight - 1}) {
    Pixels changed = image;
    changed[static_cast<size_t>(corner)] ^= 0x80;
    EXPECT_NE(bit_difference(scores(model, {changed}), before), "") << corner;
  }
}

TEST(Stages, GradientsAreThoseOfTheLoss) {
  for (const bool recompute : {false, true}) {
    for (const Kind& kind : kKinds) {
      nlohmann::json json = stages_json(kind.a, kind.b, kind.c);
      json["recompute"] = recompute;
      const Model model(read_pronghorn_config({json, "test"}), 3);
      const ImageConfig& config = *model.config().image;
      const Batch batch = batch_of(config, {random_pixels(1), random_pixels(2)});
      std::vector<int32_t> targets(static_cast<size_t>(batch.rows()), -1);
      targets[0] = 1;
      targets[static_cast<size_t>(config.rows())] = 2;
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
}

TEST(Stages, IsLoadedAsItWasSaved) {
  const Folder folder;
  const Model model(stages(), 3);
  model.save(folder.path());
  const auto loaded = Model::load(folder.path());
  EXPECT_EQ(loaded->fingerprint(), model.fingerprint());
  EXPECT_EQ(bit_difference(scores(*loaded, {random_pixels(1)}), scores(model, {random_pixels(1)})),
            "");
}

TEST(Stages, WorkIsCountedAtTheResolutionOfEachStage) {
  const Model model(stages(), 3);
  const std::vector<SpanCost> costs = model.span_costs(30);
  ASSERT_EQ(costs.size(), 3u);
  EXPECT_EQ(costs[1].share, 0.25);
  EXPECT_EQ(costs[2].share, 0.0625);
  EXPECT_EQ(costs[1].blocks, 2);
  EXPECT_DOUBLE_EQ(costs[1].cost.matmul + costs[1].cost.sequence,
                   0.25 * (model.blocks()[1]->cost(7.5).matmul * 2 +
                           model.blocks()[1]->cost(7.5).sequence * 2 + 2 * 24 * 48 / 4));
}

}  // namespace
}  // namespace pronghorn
