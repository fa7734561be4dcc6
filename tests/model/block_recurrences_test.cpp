// Recurrences in models that fill in masked tokens block by block: what training reads at once, as
// a text and its copy with noise, is what each block gives that is run by itself after the clean
// text before it, forward and backward, and what decoding gives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "ops/subsample.h"
#include "support/diffusion_models.h"
#include "support/errors.h"
#include "support/model_runs.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::error_of;
using testing_support::kMaskToken;
using testing_support::model_config;
using testing_support::random_tokens;
using testing_support::relative_difference;
using testing_support::run;

// f32 sums in another order, through the layers of a model (model_laws_test.cpp).
constexpr double kTolerance = 3e-5;

// Mixers whose operators all let segments go on from others.
const std::set<std::string> kFit = {
    "mamba", "mamba2", "mamba3", "gated_deltanet", "delta_net", "kda",
    "gla",   "hgrn",   "hgrn2",  "retnet",         "lightning", "linear_attention",
    "mlstm", "rg_lru", "rwkv6",  "rwkv7",          "s4d",       "short_conv"};
// Mixers that see blocks both ways by themselves.
const std::set<std::string> kSeeBothWays = {"attention", "mla"};

ModelConfig config_of(const std::string& mixer, const std::string& diffusion) {
  return model_config(R"("pattern": "2x", "diffusion": {)" + diffusion +
                      R"(}, "blocks": {"x": {"mixer": )" + mixer + "}}");
}

// The mixers' examples, and variants that take other ways through their operators.
std::vector<std::string> fitting() {
  std::vector<std::string> mixers = {
      R"({"type": "mamba2", "heads": 2, "state": 8, "levels": 3, "bucket": 2})",
      R"({"type": "mamba3", "heads": 4, "head_dim": 7, "state": 10, "groups": 2, "rank": 3})",
      R"({"type": "kda", "heads": 2, "value_heads": 4, "head_dim": 6, "value_head_dim": 5,
          "conv_kernel": 0, "gate_bias": false})",
      R"({"type": "gated_deltanet", "heads": 2, "value_heads": 4, "head_dim": 8,
          "value_head_dim": 6})",
      R"({"type": "mamba", "state": 5, "time_step_rank": 3, "inner_norms": "learned"})"};
  for (const MixerType& type : mixer_types()) {
    if (kFit.contains(type.name)) mixers.push_back(type.example);
  }
  return mixers;
}

Batch fresh(std::span<const int32_t> tokens) {
  Batch batch;
  add_fresh_segment(batch, tokens);
  return batch;
}

// Texts with a copy of each in which every third token is masked.
class Copies {
 public:
  Copies(int64_t block, std::vector<int64_t> lengths) : block_(block) {
    for (size_t i = 0; i < lengths.size(); ++i) {
      clean_.push_back(random_tokens(lengths[i], 60, i + 1));
      std::vector<int32_t> noisy = clean_.back();
      for (size_t j = i; j < noisy.size(); j += 3) noisy[j] = kMaskToken;
      noisy_.push_back(std::move(noisy));
    }
  }

  const std::vector<int32_t>& clean(size_t text) const { return clean_[text]; }
  const std::vector<int32_t>& noisy(size_t text) const { return noisy_[text]; }
  size_t count() const { return clean_.size(); }

  // As training reads them; rows: those with noise.
  Batch at_once(std::vector<int32_t>& rows) const {
    Batch batch;
    for (size_t i = 0; i < count(); ++i) {
      const auto length = static_cast<int32_t>(clean_[i].size());
      add_fresh_segment(batch, clean_[i]);
      const auto first = static_cast<int32_t>(batch.rows());
      add_fresh_segment(batch, noisy_[i]);
      batch.segments.pop_back();
      Segment& both = batch.segments.back();
      both.length = 2 * length;
      both.mask = Mask::two_copies;
      both.block = block_;
      for (int32_t j = 0; j < length; ++j) rows.push_back(first + j);
    }
    return batch;
  }

  // Each block with noise as the end of a text of its own; rows: those with noise.
  Batch in_turn(std::vector<int32_t>& rows) const {
    Batch batch;
    for (size_t i = 0; i < count(); ++i) {
      const int64_t length = std::ssize(clean_[i]);
      for (int64_t begin = 0; begin < length; begin += block_) {
        const int64_t end = std::min(begin + block_, length);
        std::vector<int32_t> text(clean_[i].begin(), clean_[i].begin() + begin);
        text.insert(text.end(), noisy_[i].begin() + begin, noisy_[i].begin() + end);
        const int64_t first = batch.rows();
        add_fresh_segment(batch, text);
        for (int64_t j = begin; j < end; ++j) rows.push_back(static_cast<int32_t>(first + j));
      }
    }
    return batch;
  }

 private:
  int64_t block_;
  std::vector<std::vector<int32_t>> clean_, noisy_;
};

// The scores of some rows.
std::vector<float> scores(const Model& model, const Batch& batch, std::span<const int32_t> rows) {
  const std::vector<float> all = run(model, batch, Precision::f32);
  std::vector<float> some;
  for (const int32_t row : rows) {
    some.insert(some.end(), all.begin() + int64_t{row} * 61, all.begin() + int64_t{row + 1} * 61);
  }
  return some;
}

// Blocks below and above the kernels' chunks and the fold interval, that end before the text does
// and with it, and single tokens.
struct Case {
  int64_t block;
  std::vector<int64_t> lengths;
};
const std::vector<Case> kCases = {{4, {22, 9}}, {24, {48, 62}}, {72, {160}}, {1, {5}}, {8, {6}}};

std::string diffusion_of(const Case& one, bool shared) {
  return fmt::format(R"("block": {}, "shared_directions": {})", one.block, shared);
}

TEST(BlockRecurrences, TrainingIsALoopOverBlocks) {
  for (const std::string& mixer : fitting()) {
    for (const Case& one : kCases) {
      SCOPED_TRACE(fmt::format("{} block {}", mixer, one.block));
      const Model model(config_of(mixer, diffusion_of(one, one.block == 24)), 3);
      const Copies copies(one.block, one.lengths);
      std::vector<int32_t> rows, expected_rows;
      const Batch batch = copies.at_once(rows), expected = copies.in_turn(expected_rows);
      EXPECT_LT(
          relative_difference(scores(model, batch, rows), scores(model, expected, expected_rows)),
          kTolerance);
      // The clean copies are the texts themselves.
      std::vector<float> clean;
      std::vector<int32_t> clean_rows;
      int32_t first = 0;
      for (size_t i = 0; i < copies.count(); ++i) {
        const auto part = run(model, fresh(copies.clean(i)), Precision::f32);
        clean.insert(clean.end(), part.begin(), part.end());
        const auto length = static_cast<int32_t>(copies.clean(i).size());
        for (int32_t j = 0; j < length; ++j) clean_rows.push_back(first + j);
        first += 2 * length;
      }
      EXPECT_LT(relative_difference(scores(model, batch, clean_rows), clean), kTolerance);
    }
  }
}

TEST(BlockRecurrences, DecodingSeesWhatTrainingDoes) {
  for (const std::string& mixer : fitting()) {
    for (const Case& one : kCases) {
      SCOPED_TRACE(fmt::format("{} block {}", mixer, one.block));
      const Model model(config_of(mixer, diffusion_of(one, one.block == 24)), 3);
      const Copies copies(one.block, {one.lengths.front()});
      std::vector<int32_t> rows;
      const Batch at_once = copies.at_once(rows);
      const std::vector<float> expected = scores(model, at_once, rows);
      const std::vector<int32_t>&clean = copies.clean(0), &noisy = copies.noisy(0);
      SequenceState state = model.new_state();
      std::vector<float> in_turn;
      for (size_t begin = 0; begin < clean.size(); begin += static_cast<size_t>(one.block)) {
        const size_t count = std::min(static_cast<size_t>(one.block), clean.size() - begin);
        SequenceState fork = state;
        const std::vector<float> part = run(
            model, continue_sequence(fork, std::span(noisy).subspan(begin, count)), Precision::f32);
        in_turn.insert(in_turn.end(), part.begin(), part.end());
        run(model, continue_sequence(state, std::span(clean).subspan(begin, count)),
            Precision::f32);
      }
      EXPECT_LT(relative_difference(in_turn, expected), kTolerance);
    }
  }
}

// A prompt is read several blocks at a time.
TEST(BlockRecurrences, BlocksAreReadSeveralAtATime) {
  for (const std::string& mixer : fitting()) {
    SCOPED_TRACE(mixer);
    const Model model(config_of(mixer, R"("block": 8)"), 3);
    const std::vector<int32_t> tokens = random_tokens(64, 60, 1);
    const std::vector<float> whole = run(model, fresh(tokens), Precision::f32);
    for (const std::vector<int64_t>& steps :
         {std::vector<int64_t>{8, 8, 8, 8, 8, 8, 8, 8}, {40, 8, 16}, {16, 48}}) {
      SequenceState state = model.new_state();
      EXPECT_LT(relative_difference(testing_support::decode(model, state, tokens, steps), whole),
                kTolerance);
    }
  }
}

// A row sees its block and those before it, and no other.
TEST(BlockRecurrences, RowsSeeTheirBlockAndThoseBeforeIt) {
  for (const std::string& mixer : fitting()) {
    SCOPED_TRACE(mixer);
    const Model model(config_of(mixer, R"("block": 8)"), 3);
    std::vector<int32_t> tokens = random_tokens(30, 60, 1);
    const std::vector<float> before = run(model, fresh(tokens), Precision::f32);
    tokens[15] = (tokens[15] + 1) % 60;
    const std::vector<float> after = run(model, fresh(tokens), Precision::f32);
    const auto difference = [&](int64_t row) {
      const int64_t at = row * 61;
      return relative_difference({after.begin() + at, after.begin() + at + 61},
                                 {before.begin() + at, before.begin() + at + 61});
    };
    EXPECT_LT(difference(7), 1e-6);  // rounding
    for (const int64_t row : {14, 15, 16}) EXPECT_GT(difference(row), 0) << row;
  }
}

std::vector<std::vector<float>> gradients(const Model& model, const Batch& batch,
                                          std::span<const int32_t> rows) {
  const std::vector<int32_t> targets = random_tokens(std::ssize(rows), 60, 9);
  std::vector<float> weights(rows.size());
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(1 + i % 3);
  for (const Parameter& parameter : model.parameters()) parameter.value.clear_grad();
  Tape tape;
  const Context context{&tape, Precision::f32};
  const Tensor hidden = gather_rows(context, model.forward(context, batch), rows);
  model.cross_entropy(context, hidden, targets, 1.0 / static_cast<double>(rows.size()), 0, weights);
  tape.run_backward();
  std::vector<std::vector<float>> all;
  for (const Parameter& parameter : model.parameters()) {
    EXPECT_TRUE(parameter.value.has_grad()) << parameter.name;
    const auto gradient = parameter.value.grad().read();
    all.emplace_back(gradient.begin(), gradient.end());
  }
  return all;
}

TEST(BlockRecurrences, GradientsAreThoseOfTheLoop) {
  for (const std::string& mixer : fitting()) {
    for (const Case& one : kCases) {
      SCOPED_TRACE(fmt::format("{} block {}", mixer, one.block));
      const Model model(config_of(mixer, diffusion_of(one, one.block == 24)), 3);
      const Copies copies(one.block, one.lengths);
      std::vector<int32_t> rows, expected_rows;
      const Batch batch = copies.at_once(rows), in_turn = copies.in_turn(expected_rows);
      const auto actual = gradients(model, batch, rows);
      const auto expected = gradients(model, in_turn, expected_rows);
      const auto norm = [](const std::vector<float>& values) {
        double sum = 0;
        for (const float value : values) sum += double{value} * double{value};
        return std::sqrt(sum);
      };
      double largest = 0;
      for (const std::vector<float>& each : expected) largest = std::max(largest, norm(each));
      for (size_t p = 0; p < actual.size(); ++p) {
        std::vector<float> difference = actual[p];
        for (size_t i = 0; i < difference.size(); ++i) difference[i] -= expected[p][i];
        // The same terms, each rounded on its way through the layers, in another order; some
        // cancel in a gradient that is small beside the others.
        EXPECT_LT(norm(difference), 1e-3 * norm(expected[p]) + 1e-5 * largest)
            << model.parameters()[p].name;
      }
    }
  }
}

// Beside attention, and in one block with it.
TEST(BlockRecurrences, StandBesideAttention) {
  const ModelConfig config = model_config(R"("pattern": "am b", "diffusion": {"block": 4},
      "blocks": {"a": {"mixer": {"type": "attention", "heads": 2, "rope": {}}},
                 "m": {"mixer": {"type": "mamba2", "heads": 2, "state": 8}},
                 "b": {"mixers": [{"type": "attention", "heads": 2, "rope": {}},
                                  {"type": "rwkv7", "heads": 2}]}})");
  const Model model(config, 3);
  const Copies copies(4, {22, 9});
  std::vector<int32_t> rows, expected_rows;
  const Batch batch = copies.at_once(rows), expected = copies.in_turn(expected_rows);
  EXPECT_LT(relative_difference(scores(model, batch, rows), scores(model, expected, expected_rows)),
            kTolerance);
}

// Every other mixer says so where the model is built, and not in the middle of a run.
TEST(BlockRecurrences, OthersAreRefused) {
  for (const MixerType& type : mixer_types()) {
    SCOPED_TRACE(type.name);
    const std::string error = error_of([&] { Model(config_of(type.example, R"("block": 8)"), 1); });
    if (kFit.contains(type.name) || kSeeBothWays.contains(type.name)) {
      EXPECT_EQ(error, "no error");
    } else if (error != "no error") {  // layers that the tests register may see one row alone
      EXPECT_THAT(error, HasSubstr("it cannot see blocks of 8 both ways"));
    }
  }
  for (const char* name : {"ttt_linear", "ttt_mlp", "titans_memory", "titans_mac", "titans_mag",
                           "titans_mal", "hymba", "infini", "longformer", "bigbird", "moba", "nsa",
                           "dsa", "transformer_xl", "mega", "megalodon"}) {
    EXPECT_THAT(error_of([&] {
                  Model(config_of(find_mixer_type(name, "test").example, R"("block": 8)"), 1);
                }),
                HasSubstr("it cannot see blocks of 8 both ways"))
        << name;
  }
}

}  // namespace
}  // namespace pronghorn
