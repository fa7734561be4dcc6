// Linearisation: attention becomes layers with a state, which learn to imitate it.
#include "model/linearise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "formats/json.h"
#include "formats/tokenizer.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/steps.h"
#include "support/tiny_models.h"
#include "tiny.h"
#include "train/attention_transfer.h"
#include "train/corpus.h"
#include "train/evaluate.h"
#include "train/trainer.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::decode;
using testing_support::equal_steps;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::model_config;
using testing_support::random_tokens;

constexpr int64_t kWindow = 32;

// Four layers of attention; keys and values for pairs of heads.
ModelConfig transformer(int64_t vocab_size = 61) {
  ModelConfig config = model_config(R"("pattern": "4a", "blocks": {"a": {"mixer": {"type":
      "attention", "heads": 4, "kv_heads": 2, "rope": {}}, "ffn": {"type": "swiglu", "size": 40}}})",
                                    0.1);
  config.vocab_size = vocab_size;
  return config;
}

LineariseOptions options(const std::string& pattern, const std::string& mixer) {
  return {pattern, parse_json(mixer, "test"), 3};
}

const std::string kNormalised =
    R"({"type": "linear_attention", "feature_map": "exp", "normalizer": true,
        "output_norm": "identity"})";

const Tensor& value_of(const Model& model, const std::string& name) {
  const auto found = std::ranges::find(model.parameters(), name, &Parameter::name);
  require(found != model.parameters().end(), "test", "no {}", name);
  return found->value;
}

std::vector<float> numbers(const Model& model, const std::string& name) {
  const std::span<const float> values = value_of(model, name).values();
  return {values.begin(), values.end()};
}

TEST(Linearise, TakesAttentionsMatricesAndRepeatsSharedHeads) {
  const Model model(transformer(), 5);
  const Linearised linear = linearise(model, options("lla l", kNormalised));
  EXPECT_THAT(linear.layers, ElementsAre(0, 1, 3));
  EXPECT_EQ(linear.taken, 12);  // four matrices a layer
  EXPECT_EQ(linear.fresh, 0);
  EXPECT_EQ(expanded_pattern(linear.model->config().steps).size(), 4u);
  for (const std::string name : {"q_proj", "o_proj"}) {
    const std::string path = "layers.1.mixer." + name + ".weight";
    EXPECT_EQ(numbers(*linear.model, path), numbers(model, path));
  }
  // Heads 0 and 1 had the first keys in common, 2 and 3 the others.
  const Tensor &own = value_of(*linear.model, "layers.1.mixer.k_proj.weight"),
               &shared = value_of(model, "layers.1.mixer.k_proj.weight");
  const int64_t dim = shared.rows() / 2;
  ASSERT_EQ(own.rows(), 4 * dim);
  for (int64_t row = 0; row < own.rows(); ++row) {
    const int64_t from = row / (2 * dim) * dim + row % dim;
    EXPECT_TRUE(std::equal(own.row(row), own.row(row) + own.columns(), shared.row(from))) << row;
  }
  for (const Parameter& parameter : model.parameters()) {
    if (parameter.name.find(".mixer.") != std::string::npos &&
        parameter.name.find("layers.2.") == std::string::npos) {
      continue;
    }
    EXPECT_EQ(numbers(*linear.model, parameter.name), numbers(model, parameter.name))
        << parameter.name;
  }
}

TEST(Linearise, TakesWhatFitsIntoOtherMixers) {
  const Model model(transformer(), 5);
  for (const std::string type : {"gla", "retnet", "lightning", "hgrn2", "gated_deltanet", "kda"}) {
    const Linearised linear = linearise(model, options("4l", R"({"type": ")" + type + R"("})"));
    EXPECT_GT(linear.taken, 4) << type;  // q_proj at least, and most have more
    const Folder folder;
    linear.model->save(folder.path());
    const auto loaded = Model::load(folder.path());
    const std::vector<int32_t> tokens = random_tokens(40, 61, 3);
    SequenceState one = loaded->new_state(), other = linear.model->new_state();
    EXPECT_EQ(bit_difference(decode(*loaded, one, tokens, equal_steps(40, 7)),
                             decode(*linear.model, other, tokens, equal_steps(40, 7))),
              "")
        << type;
  }
}

TEST(Linearise, RefusesWhatDoesNotFit) {
  const Model model(transformer(), 5);
  const auto refused = [&](const std::string& pattern, const std::string& mixer) {
    return error_of([&] { linearise(model, options(pattern, mixer)); });
  };
  EXPECT_THAT(refused("3l", kNormalised), HasSubstr("3 layers for a model of 4"));
  EXPECT_THAT(refused("4a", kNormalised), HasSubstr("no layer becomes linear"));
  EXPECT_THAT(refused("3l m", kNormalised), HasSubstr("letters l (linear) and a (attention)"));
  EXPECT_THAT(refused("4l", R"({"heads": 2})"), HasSubstr("has no type"));
  EXPECT_THAT(refused("4l", R"({"type": "gla", "speed": 2})"), HasSubstr("speed"));
  const Model mamba(
      model_config(R"("pattern": "m", "blocks": {"m": {"mixer": {"type": "mamba"}}})"), 5);
  EXPECT_THAT(error_of([&] { linearise(mamba, options("l", kNormalised)); }),
              HasSubstr("not attention alone"));
}

class TransferTest : public testing::Test {
 protected:
  TransferTest() {
    write_file(folder_ / "text.txt", testing_train::tiny_text());
    corpus_ = prepare_corpus({folder_ / "text.txt"}, 0, folder_ / "data");
    shard_ = std::make_unique<TokenShard>(corpus_.files.train);
    held_out_ = std::make_unique<TokenShard>(corpus_.files.held_out);
    teacher_ = std::make_unique<Model>(transformer(corpus_.tokenizer->vocab_size()), 5);
    tune(*teacher_, 80, 1e-2);
  }

  static TrainConfig config(double rate) {
    TrainConfig config;
    config.window = kWindow;
    config.batch_tokens = 512;
    config.micro_batch_tokens = 256;
    config.learning_rate = rate;
    config.weight_decay = 0;
    config.precision = Precision::f32;
    return config;
  }

  void tune(const Model& model, int64_t steps, double rate) {
    TextSource source(*shard_, kWindow, 4);
    TrainingState state(model);
    for (int64_t i = 0; i < steps; ++i) train_step(model, config(rate), source, state, rate);
  }

  std::vector<double> transfer(const Linearised& linear, std::vector<double>& seen) {
    TextSource source(*shard_, kWindow, 4);
    AttentionTransfer transfer{.config = config(5e-3), .steps = 60, .layers = linear.layers};
    transfer.on_step = [&](int64_t, double loss) { seen.push_back(loss); };
    return transfer_attention(*teacher_, *linear.model, source, transfer);
  }

  double score(const Model& model) {
    return evaluate_text(model, Precision::f32, *held_out_, kWindow).bits_per_byte();
  }

  const Folder folder_;
  Corpus corpus_;
  std::unique_ptr<TokenShard> shard_, held_out_;
  std::unique_ptr<Model> teacher_;
};

TEST_F(TransferTest, ImitatesAttentionAndChangesNothingElse) {
  const Linearised linear = linearise(*teacher_, options("lall", kNormalised));
  std::vector<double> seen;
  const std::vector<double> losses = transfer(linear, seen);
  ASSERT_EQ(seen.size(), 60u);
  EXPECT_EQ(losses.size(), 3u);
  EXPECT_LT(seen.back(), 0.6 * seen.front());
  for (const Parameter& parameter : linear.model->parameters()) {
    const bool mixer = parameter.name.find(".mixer.") != std::string::npos &&
                       parameter.name.find("layers.1.") == std::string::npos;
    if (mixer) continue;
    EXPECT_EQ(numbers(*linear.model, parameter.name), numbers(*teacher_, parameter.name))
        << parameter.name;
  }
}

// Over as many steps of tuning, the model whose layers have learned to imitate is the better one.
TEST_F(TransferTest, GivesTuningABetterStart) {
  const Linearised taught = linearise(*teacher_, options("4l", kNormalised));
  const Linearised untaught = linearise(*teacher_, options("4l", kNormalised));
  std::vector<double> seen;
  transfer(taught, seen);
  EXPECT_LT(score(*taught.model), score(*untaught.model));
  tune(*taught.model, 10, 1e-3);
  tune(*untaught.model, 10, 1e-3);
  EXPECT_LT(score(*taught.model), score(*untaught.model));
}

}  // namespace
}  // namespace pronghorn
