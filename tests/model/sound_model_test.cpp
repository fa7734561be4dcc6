// Models of sound: their configuration, what a row sees, states that carry a sound on, gradients.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/random.h"
#include "model/model.h"
#include "ops/ctc.h"
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

constexpr int64_t kFeatures = 6;
constexpr const char* kAttention = R"({"type": "attention", "heads": 2, "rope": {}})";
constexpr const char* kMamba = R"({"type": "mamba", "state": 4})";
constexpr const char* kDeltaNet = R"({"type": "gated_deltanet", "heads": 2, "head_dim": 8})";

nlohmann::json sound_json(const std::string& mixer, bool both_ways, bool rates = false) {
  nlohmann::json json = {{"hidden_size", 24}, {"pattern", rates ? "a(a(a))a" : "2a"}};
  if (rates) json["subsample"] = {{"type", "zipformer"}, {"rate", {2, 2}}};
  json["sound"] = {
      {"mels", 3}, {"stack", 2}, {"both_ways", both_ways}, {"symbols", {" ", "a", "b"}}};
  json["blocks"]["a"] = {{"mixer", parse_json(mixer, "test")},
                         {"ffn", {{"type", "swiglu"}, {"size", 40}}}};
  json["initializer_range"] = 0.3;
  return json;
}

ModelConfig sound_config(const std::string& mixer, bool both_ways, bool rates = false) {
  return read_pronghorn_config({sound_json(mixer, both_ways, rates), "test"});
}

Batch rows_of(const std::vector<int64_t>& lengths, uint64_t seed = 1) {
  Batch batch;
  Random random(seed, "frames");
  std::vector<float> numbers;
  for (const int64_t length : lengths) {
    batch.segments.push_back({nullptr, batch.rows(), length});
    for (int64_t row = 0; row < length; ++row) {
      batch.positions.push_back(static_cast<int32_t>(row));
      for (int64_t c = 0; c < kFeatures; ++c) numbers.push_back(float(random.normal()));
    }
  }
  batch.embeddings = Tensor::from(numbers, {batch.rows(), kFeatures});
  return batch;
}

std::vector<float> scores(const Model& model, const Batch& batch) {
  const PooledVector<float> read = model.logits({}, model.forward({}, batch)).read();
  return {read.begin(), read.end()};
}

struct Kind {
  const char* mixer;
  bool both_ways, rates;
};
const std::vector<Kind> kKinds = {{kAttention, true, false}, {kAttention, true, true},
                                  {kMamba, true, false},     {kDeltaNet, true, true},
                                  {kMamba, false, false},    {kAttention, false, true}};

TEST(SoundModel, ConfigurationsAreReadAsTheyWereWritten) {
  for (const Kind& kind : kKinds) {
    const ModelConfig config = sound_config(kind.mixer, kind.both_ways, kind.rates);
    EXPECT_EQ(config.vocab_size, 4);
    EXPECT_EQ(config.sound->features(), kFeatures);
    const nlohmann::json written = write_pronghorn_config(config);
    EXPECT_EQ(write_pronghorn_config(read_pronghorn_config({written, "again"})), written);
  }
  EXPECT_FALSE(write_pronghorn_config(testing_support::tiny_config()).contains("sound"));
}

TEST(SoundModel, SymbolsComeWithTheTexts) {
  nlohmann::json json = sound_json(kMamba, true);
  json["sound"].erase("symbols");
  ModelConfig config = read_pronghorn_config({json, "test"});
  EXPECT_EQ(config.vocab_size, 0);
  const std::vector<std::string> texts = {"bé a", "ab"};
  set_sound(config, symbols_of(texts, "test"));
  EXPECT_THAT(config.sound->symbols, ElementsAre(" ", "a", "b", "é"));
  EXPECT_EQ(config.vocab_size, 5);
  EXPECT_THAT(encode_symbols(*config.sound, "éa", "test"), ElementsAre(4, 2));
  EXPECT_EQ(decode_symbols(*config.sound, std::vector<int32_t>{4, 2}), "éa");
  EXPECT_THAT(error_of([&] { encode_symbols(*config.sound, "ac", "x"); }), HasSubstr("x: 'c'"));
  EXPECT_THAT(error_of([&] { set_sound(config, {"a"}); }), HasSubstr("not those of the model"));
  ModelConfig text = testing_support::tiny_config();
  EXPECT_THAT(error_of([&] { set_sound(text, {"a"}); }), HasSubstr("of texts"));
}

TEST(SoundModel, RefusesWhatSoundsHaveNoUseFor) {
  const auto refusal = [](const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json json = sound_json(kMamba, true);
    change(json);
    return error_of([&] { Model(read_pronghorn_config({json, "test"}), 1); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "no error");
  EXPECT_THAT(refusal([](auto& j) { j["tie_embeddings"] = true; }), HasSubstr("tie_embeddings"));
  EXPECT_THAT(refusal([](auto& j) { j["prefix_tokens"] = 2; }), HasSubstr("prefix_tokens"));
  EXPECT_THAT(refusal([](auto& j) { j["mtp"] = {{"heads", 1}}; }), HasSubstr("mtp"));
  EXPECT_THAT(refusal([](auto& j) {
                j["vision"] = {{"patch", 4}, {"width", 8}, {"height", 8}, {"channels", 1}};
              }),
              HasSubstr("images before a text in a model of sound"));
  EXPECT_THAT(refusal([](auto& j) { j["vocab_size"] = 9; }), HasSubstr("9 with 3 symbols"));
  EXPECT_THAT(refusal([](auto& j) { j["sound"]["window"] = 406; }), HasSubstr("2, 3 and 5"));
  EXPECT_THAT(refusal([](auto& j) { j["sound"]["symbols"] = {"a", "a"}; }), HasSubstr("twice"));
  EXPECT_THAT(refusal([](auto& j) { j["sound"]["symbols"] = nlohmann::json::array({"ab"}); }),
              HasSubstr("no character"));
  EXPECT_THAT(refusal([](auto& j) { j["blocks"]["a"]["scan"] = "cross"; }), HasSubstr("scan"));
  EXPECT_THAT(refusal([](auto& j) { j["blocks"]["a"]["mixer"]["convolution"] = "grid"; }),
              HasSubstr("grid"));
  EXPECT_THAT(refusal([](auto& j) {
                j["pattern"] = "a(a)";
                j["subsample"] = {{"keep", 0.5}};
              }),
              HasSubstr("zipformer"));
}

TEST(SoundModel, RowsSeeBothWaysOrOnlyBack) {
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(fmt::format("{} {} {}", kind.mixer, kind.both_ways, kind.rates));
    const Model model(sound_config(kind.mixer, kind.both_ways, kind.rates), 3);
    const Batch batch = rows_of({17});
    const std::vector<float> before = scores(model, batch);
    Batch changed = batch;
    PooledVector<float> numbers = batch.embeddings.read();
    for (int64_t c = 0; c < kFeatures; ++c) numbers[static_cast<size_t>(12 * kFeatures + c)] += 1;
    changed.embeddings = Tensor::from(numbers, batch.embeddings.shape());
    const std::vector<float> after = scores(model, changed);
    const double earlier =
        relative_difference(std::span(after).first(12 * 4), std::span(before).first(12 * 4));
    // f32 sums, or what a row that is a deviation off does to those around it.
    EXPECT_EQ(earlier > 1e-4, kind.both_ways) << earlier;
    EXPECT_NE(bit_difference(std::span(before).last(5 * 4), std::span(after).last(5 * 4)), "");
  }
}

TEST(SoundModel, SoundsOfABatchDoNotSeeEachOther) {
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(fmt::format("{} {} {}", kind.mixer, kind.both_ways, kind.rates));
    const Model model(sound_config(kind.mixer, kind.both_ways, kind.rates), 3);
    const std::vector<float> together = scores(model, rows_of({9, 22, 3}));
    // The first of both batches has the same numbers. f32 sums in another order.
    EXPECT_LT(relative_difference(std::span(together).first(9 * 4), scores(model, rows_of({9}))),
              2e-5);
  }
}

TEST(SoundModel, AStateCarriesASoundOn) {
  for (const Kind& kind : kKinds) {
    const Model model(sound_config(kind.mixer, kind.both_ways, kind.rates), 3);
    const Batch batch = rows_of({30});
    SequenceState state = model.new_state();
    if (kind.both_ways) {
      Batch carried = batch;
      carried.segments[0].state = &state;
      EXPECT_THAT(error_of([&] { model.forward({}, carried); }), HasSubstr("with a state"));
      continue;
    }
    std::vector<float> steps;
    for (int64_t row = 0; row < 30; row += 3) {
      Batch part;
      part.embeddings = batch.embeddings.row_slice(row, 3);
      for (int64_t i = row; i < row + 3; ++i) part.positions.push_back(static_cast<int32_t>(i));
      part.segments.push_back({&state, 0, 3});
      const std::vector<float> some = scores(model, part);
      steps.insert(steps.end(), some.begin(), some.end());
    }
    // As the laws of whole models have it for long pieces in f32.
    EXPECT_LT(relative_difference(steps, scores(model, batch)), 3e-5);
  }
}

TEST(SoundModel, GradientsAreThoseOfTheLoss) {
  for (const Kind& kind : kKinds) {
    SCOPED_TRACE(fmt::format("{} {} {}", kind.mixer, kind.both_ways, kind.rates));
    const Model model(sound_config(kind.mixer, kind.both_ways, kind.rates), 3);
    const Batch batch = rows_of({11, 7});
    const std::vector<std::vector<int32_t>> symbols = {{1, 2, 2, 3}, {3, 1}};
    const auto loss = [&](Tape* tape) {
      Context context;
      context.tape = tape;
      const Tensor hidden = model.forward(context, batch);
      return ctc_loss(context, model.logits(context, hidden), batch, symbols, 0.5).nll / 2;
    };
    Tape tape;
    loss(&tape);
    tape.run_backward();
    expect_slope_along_gradients(model, loss, 5e-4);
  }
}

TEST(SoundModel, IsLoadedAsItWasSaved) {
  const Folder folder;
  const Model model(sound_config(kMamba, true, true), 3);
  model.save(folder.path());
  const auto loaded = Model::load(folder.path());
  EXPECT_THAT(loaded->config().sound->symbols, ElementsAre(" ", "a", "b"));
  EXPECT_EQ(bit_difference(scores(*loaded, rows_of({5})), scores(model, rows_of({5}))), "");
}

TEST(SoundModel, RowsAreFramesSideBySide) {
  SoundConfig config;
  config.mel.mels = 2;
  config.stack = 3;
  EXPECT_EQ(config.rows(4 * 160 + 159), 2);
  // Four frames: the second row repeats the last.
  EXPECT_THAT(stacked_rows(config, std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8}),
              ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 7, 8, 7, 8));
}

TEST(SoundModel, RefusesTextsAndOtherRows) {
  const Model model(sound_config(kMamba, false), 3);
  Batch text;
  add_fresh_segment(text, std::vector<int32_t>(4, 1));
  EXPECT_THAT(error_of([&] { model.forward({}, text); }), HasSubstr("tokens in place of frames"));
  Batch batch = rows_of({4});
  batch.embeddings = Tensor::zeros({4, 5});
  EXPECT_THAT(error_of([&] { model.forward({}, batch); }), HasSubstr("frames of 6 numbers"));
}

}  // namespace
}  // namespace pronghorn
