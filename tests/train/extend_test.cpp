// Longer contexts: positions that skip, and rotary positions that are scaled.
#include "model/extend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "formats/tokenizer.h"
#include "model/trained_context.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/tiny_models.h"
#include "train/corpus.h"
#include "train/evaluate.h"
#include "train/skipped_positions.h"
#include "train/tiny.h"
#include "train/trainer.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::model_config;

// What section 3.2 of the paper promises of each example.
TEST(SkippedPositions, AreThoseOfThePaper) {
  for (const auto& [length, skip, chunks] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {64, 1024, 2}, {64, 1024, 5}, {64, 65, 2}, {3, 50, 9}, {1, 10, 2}}) {
    std::set<std::vector<int32_t>> different;
    for (uint64_t index = 0; index < 200; ++index) {
      const std::vector<int32_t> positions = skipped_positions({skip, chunks}, 7, index, length);
      ASSERT_EQ(std::ssize(positions), length);
      EXPECT_EQ(positions.front(), 0);
      EXPECT_LT(positions.back(), skip);
      int64_t jumps = 0;
      for (size_t i = 1; i < positions.size(); ++i) {
        ASSERT_GT(positions[i], positions[i - 1]);
        jumps += positions[i] > positions[i - 1] + 1 ? 1 : 0;
      }
      EXPECT_LE(jumps, chunks - 1);
      EXPECT_EQ(positions, skipped_positions({skip, chunks}, 7, index, length));
      different.insert(positions);
    }
    if (skip > 100) {
      EXPECT_GT(different.size(), 190u);
    }
  }
  // Nothing is skipped: neither without a context, nor where the window is all of it.
  for (const int64_t skip : {0, 32}) {
    const std::vector<int32_t> positions = skipped_positions({skip, 3}, 7, 1, 32);
    for (int32_t i = 0; i < 32; ++i) EXPECT_EQ(positions[static_cast<size_t>(i)], i);
  }
}

// With two chunks the second one begins anywhere, and so late that the last position is any of
// those that there can be: means of 400 draws that are even lie within 5 of their standard
// deviations, 64 / sqrt(12 400) and 960 / sqrt(12 400).
TEST(SkippedPositions, AreDrawnEvenly) {
  double cut = 0, last = 0;
  constexpr int kDraws = 400;
  for (uint64_t index = 0; index < kDraws; ++index) {
    const std::vector<int32_t> positions = skipped_positions({1024, 2}, 3, index, 64);
    int64_t begin = 1;
    while (begin < 63 && positions[static_cast<size_t>(begin)] == begin) ++begin;
    cut += static_cast<double>(begin) / kDraws;
    last += static_cast<double>(positions.back() - 63) / kDraws;
  }
  EXPECT_NEAR(cut, 32, 5 * 64 / std::sqrt(12.0 * kDraws));
  EXPECT_NEAR(last, 480, 5 * 960 / std::sqrt(12.0 * kDraws));
}

ModelConfig transformer(const std::string& more = "") {
  ModelConfig config = model_config(R"("pattern": "ab", "max_position_embeddings": 32, "blocks": {
      "a": {"mixer": {"type": "attention", "heads": 4, "kv_heads": 2, "rope": {"theta": 1000}},
            "ffn": {"type": "swiglu", "size": 40}},
      "b": {"mixers": [{"type": "attention", "heads": 2, "window": 9, "rope": {}},
                       {"type": "attention", "heads": 2, "rope": {}}]}})" +
                                    more);
  config.vocab_size = 256;
  return config;
}

nlohmann::json scaling_of(const ModelConfig& config, char block, size_t mixer) {
  return config.blocks.at(block).mixers.at(mixer).at("rope").at("scaling");
}

TEST(Extend, ScalesLayersThatSeeEverything) {
  const ModelConfig config = transformer();
  for (const std::string scaling : {"yarn", "linear", "ntk"}) {
    const ModelConfig extended =
        extended_config(config, {.context = 256, .original = 0, .scaling = scaling});
    for (const auto& [block, mixer] : {std::pair('a', 0), {'b', 1}}) {
      const nlohmann::json own = scaling_of(extended, block, static_cast<size_t>(mixer));
      EXPECT_EQ(own.at("type"), scaling == "ntk" ? "dynamic_ntk" : scaling);
      EXPECT_EQ(own.at("original_context"), 32);
      if (scaling == "ntk") {
        EXPECT_EQ(own.at("context"), 256);
      } else {
        EXPECT_EQ(own.at("factor"), 8);
      }
    }
    EXPECT_TRUE(scaling_of(extended, 'b', 0).is_null());
    EXPECT_EQ(trained_context(extended).tokens, 256);
    EXPECT_EQ(trained_context(extended).original, 32);
    const Model before(config, 1), after(extended, 1);
    ASSERT_EQ(before.parameters().size(), after.parameters().size());
    EXPECT_GE(position_limit(after), 256);
    // Further still, from the same context.
    const ModelConfig again =
        extended_config(extended, {.context = 1024, .original = 0, .scaling = scaling});
    EXPECT_EQ(scaling_of(again, 'a', 0).at("original_context"), 32);
    EXPECT_EQ(trained_context(again).original, 32);
  }
}

TEST(Extend, RefusesWhatItCannotScale) {
  const auto refused = [](const ModelConfig& config, const ExtendOptions& options) {
    return error_of([&] { extended_config(config, options); });
  };
  EXPECT_THAT(refused(transformer(), {.context = 32, .original = 0}), HasSubstr("no more"));
  EXPECT_THAT(refused(transformer(), {.context = 64, .original = 0, .scaling = "x"}),
              HasSubstr("yarn"));
  ModelConfig unknown = transformer();
  unknown.context = {};
  EXPECT_THAT(refused(unknown, {.context = 64}), HasSubstr("--original"));
  EXPECT_EQ(refused(unknown, {.context = 64, .original = 16}), "no error");
  const ModelConfig yarn = extended_config(transformer(), {.context = 64});
  EXPECT_THAT(refused(yarn, {.context = 128, .original = 0, .scaling = "linear"}),
              HasSubstr("already"));
  ModelConfig none = model_config(
      R"("pattern": "m", "max_position_embeddings": 32, "blocks": {"m": {"mixer": {"type":
         "mamba2", "heads": 2}}})");
  EXPECT_THAT(refused(none, {.context = 64}), HasSubstr("rotary"));
}

// A model that has met short windows alone reads longer texts better after steps in which their
// positions skip, and is trained as any other: to the same bits however it is cut into forwards.
TEST(Extend, SkippedPositionsTeachLongTexts) {
  const Folder folder;
  write_file(folder / "t.txt", testing_train::tiny_text(60000));
  const auto tokenizer = make_byte_tokenizer();
  const PreparedTokens made = prepare_tokens({folder / "t.txt"}, *tokenizer, folder / "data");
  const TokenShard shard(made.train), held_out(made.held_out);
  TrainRun run;
  run.config.window = 32;
  run.config.batch_tokens = 512;
  run.config.learning_rate = 0.01;
  run.config.precision = Precision::f32;
  run.budget.steps = 120;
  run.directory = folder / "short";
  TextSource source(shard, 32, 1);
  Model model(transformer(), 1);
  train(model, source, &held_out, tokenizer.get(), run);
  const auto bits = [&](const Model& one) {
    return evaluate_text(one, Precision::f32, held_out, 256, 2048).bits_per_byte();
  };

  const auto extend = [&](const std::string& name, int64_t micro) {
    Model longer(extended_config(transformer(), {.context = 256}), 1);
    longer.load_weights(folder / "short");
    TrainRun more = run;
    more.config.positions.skip = 256;
    more.config.learning_rate = 0.003;
    more.config.micro_batch_tokens = micro;
    more.budget.steps = 60;
    more.directory = folder / name;
    train(longer, source, &held_out, tokenizer.get(), more);
    return bits(longer);
  };
  const double after = extend("long", 512);
  EXPECT_LT(after, bits(model));
  EXPECT_NEAR(extend("cut", 128), after, 0.02 * after);  // sums in another order, sixty steps long
  run.config.positions.skip = 16;
  run.directory = folder / "none";
  EXPECT_THAT(error_of([&] { train(model, source, &held_out, tokenizer.get(), run); }),
              HasSubstr("examples of 32"));
}

}  // namespace
}  // namespace pronghorn
