// Models of texts that see images: rows of patches and tokens in one sequence.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <initializer_list>

#include "base/random.h"
#include "decode/session.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/slopes.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::error_of;
using testing_support::expect_slope_along_signs;
using testing_support::Folder;
using testing_support::random_tokens;
using testing_support::relative_difference;
using testing_support::run;

constexpr int64_t kVocabulary = 31, kRows = 6;

// Images of 6 by 4 colours in patches of 2: 6 rows. Attention, and a recurrence.
ModelConfig vision_config(const std::string& more = "") {
  return read_pronghorn_config(
      {parse_json(fmt::format(R"({{"vocab_size": {}, "hidden_size": 16, "pattern": "a d",
          "initializer_range": 0.3, "embedding_scale": 2,
          "vision": {{"patch": 2, "width": 6, "height": 4, "channels": 3}}, {}
          "blocks": {{
            "a": {{"mixer": {{"type": "attention", "heads": 2, "rope": {{}}}},
                   "ffn": {{"type": "swiglu", "size": 24}}}},
            "d": {{"mixer": {{"type": "gated_deltanet", "heads": 2, "head_dim": 8}}}}}}}})",
                              kVocabulary, more),
                  "test"),
       "test"});
}

Image random_image(uint64_t seed) {
  Image image{6, 4, 3, std::vector<uint8_t>(72)};
  Random random(seed, "pixels");
  for (uint8_t& pixel : image.pixels) pixel = static_cast<uint8_t>(random.below(256));
  return image;
}

std::vector<float> pixels_of(const Model& model, const Image& image) {
  const ImageConfig& vision = *model.config().vision;
  std::vector<float> rows(static_cast<size_t>(vision.rows() * vision.features()));
  write_rows(vision, image.pixels.data(), 0, 0, rows.data());
  return rows;
}

// An image and a text after it, a fresh sequence.
Batch image_and_text(const Model& model, const Image& image, std::span<const int32_t> text) {
  std::vector<int32_t> tokens(kRows, kPatch);
  tokens.insert(tokens.end(), text.begin(), text.end());
  Batch batch = fresh_segments(tokens, std::ssize(tokens));
  batch.patches = Tensor::from(pixels_of(model, image), {kRows, model.config().vision->features()});
  return batch;
}

std::vector<float> values_of(const Model& model, const std::string& name) {
  for (const Parameter& parameter : model.parameters()) {
    if (parameter.name != name) continue;
    return {parameter.value.values().begin(), parameter.value.values().end()};
  }
  ADD_FAILURE() << name;
  return {};
}

// norm(W pixels + b) for a patch, a row of the table for a token, by a loop in float64.
TEST(Vision, RowsArePatchesAndTokens) {
  const Model model(vision_config(), 1);
  const Image image = random_image(1);
  const std::vector<int32_t> text = random_tokens(5, kVocabulary, 2);
  const Batch batch = image_and_text(model, image, text);
  const std::vector<float> weight = values_of(model, "mm_projector.weight"),
                           bias = values_of(model, "mm_projector.bias"),
                           norm = values_of(model, "mm_projector.norm.weight"),
                           table = values_of(model, "embeddings.weight"),
                           pixels = pixels_of(model, image);
  ASSERT_EQ(weight.size(), 16u * 12u);
  // The second row of the first patch: 6 pixels of 3 colours further on.
  EXPECT_FLOAT_EQ(pixels[6], static_cast<float>(image.pixels[18]) / 127.5f - 1);
  std::vector<float> rows;
  for (size_t patch = 0; patch < kRows; ++patch) {
    std::vector<double> row(16);
    double square = 0;
    for (size_t i = 0; i < row.size(); ++i) {
      row[i] = bias[i];
      for (size_t j = 0; j < 12; ++j) row[i] += double{weight[i * 12 + j]} * pixels[patch * 12 + j];
      square += row[i] * row[i] / 16;
    }
    const double scale = 1 / std::sqrt(square + 1e-5);
    for (size_t i = 0; i < row.size(); ++i) {
      rows.push_back(static_cast<float>(row[i] * scale * norm[i]));
    }
  }
  for (const int32_t token : text) {
    for (size_t i = 0; i < 16; ++i) rows.push_back(2 * table[static_cast<size_t>(token) * 16 + i]);
  }
  Batch embedded = batch;
  embedded.tokens.clear();
  embedded.patches = {};
  embedded.embeddings = Tensor::from(rows, {batch.rows(), 16});
  EXPECT_LE(
      relative_difference(run(model, batch, Precision::f32), run(model, embedded, Precision::f32)),
      1e-5);
}

// An image is rows of its sequence: cut anywhere, to the bit.
TEST(Vision, AnyCutGivesTheSameBits) {
  const Model model(vision_config(), 2);
  const Image image = random_image(2);
  const std::vector<int32_t> text = random_tokens(6, kVocabulary, 3);
  const Tensor pixels = image_and_text(model, image, text).patches;
  std::vector<int32_t> tokens(kRows, kPatch);
  tokens.insert(tokens.end(), text.begin(), text.end());
  const auto read = [&](std::initializer_list<int64_t> steps) {
    SequenceState state = model.new_state();
    std::vector<float> logits;
    int64_t done = 0;
    for (const int64_t step : steps) {
      Batch batch = continue_sequence(
          state, std::span(tokens).subspan(static_cast<size_t>(done), static_cast<size_t>(step)));
      const int64_t patches = std::clamp<int64_t>(kRows - done, 0, step);
      if (patches > 0) batch.patches = pixels.row_slice(done, patches);
      const std::vector<float> part = run(model, batch, Precision::f32);
      logits.insert(logits.end(), part.begin(), part.end());
      done += step;
    }
    return logits;
  };
  const std::vector<float> whole = read({12});
  EXPECT_EQ(bit_difference(read({6, 6}), whole), "");
  EXPECT_EQ(bit_difference(read({1, 4, 2, 1, 1, 3}), whole), "");
}

TEST(Vision, SessionsSeeForkAndKeepImages) {
  const Folder folder;
  const Model model(vision_config(), 3);
  const std::vector<int32_t> text = random_tokens(9, kVocabulary, 4);
  const auto scores = [&](Session session) {
    session.append(text);
    const Tensor logits = session.scores(model, {});
    return std::vector<float>(logits.values().begin(), logits.values().end());
  };
  Session session(model);
  session.see(model, {}, random_image(1));
  EXPECT_EQ(session.seen(), kRows);
  EXPECT_EQ(session.length(), kRows);
  EXPECT_TRUE(session.recent().empty());  // what a penalty counts are tokens
  const std::vector<float> expected = scores(session);
  session.save(folder / "session");
  Session loaded = Session::load(folder / "session", model);
  EXPECT_EQ(loaded.seen(), kRows);
  EXPECT_EQ(bit_difference(scores(loaded), expected), "");
  Session other(model);
  other.see(model, {}, random_image(2));
  EXPECT_NE(bit_difference(scores(other), expected), "");
  // Back to the image, but not into it.
  loaded.append(text);
  loaded.scores(model, {});
  EXPECT_TRUE(loaded.go_back(std::vector<int32_t>(kRows, 0)));
  EXPECT_TRUE(loaded.recent().empty());
  EXPECT_EQ(bit_difference(scores(loaded), expected), "");
  EXPECT_FALSE(loaded.go_back(std::vector<int32_t>(kRows - 1, 0)));

  loaded.append(text);
  EXPECT_THAT(error_of([&] { loaded.see(model, {}, random_image(1)); }), HasSubstr("after text"));
  EXPECT_THAT(error_of([&] {
                other.see(model, {}, {4, 4, 3, std::vector<uint8_t>(48)});
              }),
              HasSubstr("4 by 4 pixels"));
  const Model blind(
      read_pronghorn_config({parse_json(R"({"vocab_size": 31, "hidden_size": 8, "pattern": "a",
                            "blocks": {"a": {"ffn": {"type": "swiglu", "size": 8}}}})",
                                        "test"),
                             "test"}),
      1);
  Session unseen(blind);
  EXPECT_THAT(error_of([&] { unseen.see(blind, {}, random_image(1)); }),
              HasSubstr("sees no images"));
}

TEST(Vision, GradientsAreDifferences) {
  const Model model(vision_config(), 7);
  const std::vector<int32_t> text = random_tokens(20, kVocabulary, 5);
  const Batch batch = image_and_text(model, random_image(3), text);
  std::vector<int32_t> targets(kRows - 1, -1);
  for (const int32_t token : random_tokens(21, kVocabulary, 6)) targets.push_back(token);
  constexpr double kScale = 1.0 / 21;
  const auto loss = [&](Tape* tape) {
    const Context context{tape, Precision::f32};
    const Tensor hidden = model.forward(context, batch);
    return kScale * model.cross_entropy(context, hidden, targets, kScale, 0).nll;
  };
  Tape tape;
  loss(&tape);
  tape.run_backward();
  for (const Parameter& parameter : model.parameters()) {
    if (!parameter.name.starts_with("mm_projector") && parameter.name != "embeddings.weight") {
      continue;
    }
    SCOPED_TRACE(parameter.name);
    ASSERT_TRUE(parameter.value.has_grad());
    const uint64_t seed = static_cast<uint64_t>(parameter.value.size());
    EXPECT_GT(expect_slope_along_signs(parameter, seed, loss), 0);
  }
}

TEST(Vision, RefusesWhatSeesTokensOnly) {
  EXPECT_THAT(error_of([] { vision_config(R"("mtp": {"heads": 1},)"); }), HasSubstr("\"vision\""));
  EXPECT_THAT(error_of([] { vision_config(R"("diffusion": {},)"); }), HasSubstr("diffusion"));
  const Model model(vision_config(), 1);
  Batch batch = image_and_text(model, random_image(1), random_tokens(3, kVocabulary, 1));
  batch.tokens[0] = 0;
  EXPECT_THAT(error_of([&] { model.forward({}, batch); }), HasSubstr("rows of them"));
}

}  // namespace
}  // namespace pronghorn
