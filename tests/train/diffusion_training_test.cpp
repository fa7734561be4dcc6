// Training of diffusion models: it learns, resumes to the bit, and masks the same tokens however a
// step is cut.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/files.h"
#include "base/log.h"
#include "support/diffusion_models.h"
#include "support/errors.h"
#include "support/folder.h"
#include "train/evaluate.h"
#include "train/finetune.h"
#include "train/tasks.h"
#include "train/tiny.h"
#include "train/trainer.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;

ModelConfig tiny_diffusion(const std::string& pattern, int64_t block = 0) {
  nlohmann::json json = testing_support::tiny_json(pattern);
  json["diffusion"] = {{"block", block}};
  ModelConfig config = read_pronghorn_config({json, "tiny"});
  set_vocabulary(config, 256);
  return config;
}

std::vector<float> numbers_of(const std::vector<Tensor>& tensors) {
  std::vector<float> all;
  for (const Tensor& tensor : tensors) {
    all.insert(all.end(), tensor.values().begin(), tensor.values().end());
  }
  return all;
}

class DiffusionTrainingTest : public testing::Test {
 protected:
  DiffusionTrainingTest() {
    set_up_log(true);
    Progress::set_enabled(false);
    write_file(folder_ / "t.txt", testing_train::tiny_text());
    made_ = prepare_tokens({folder_ / "t.txt"}, *tokenizer_, folder_ / "data");
    shard_ = std::make_unique<TokenShard>(made_.train);
    held_out_ = std::make_unique<TokenShard>(made_.held_out);
    config_.window = 32;
    config_.batch_tokens = 256;
    config_.learning_rate = 0.01;
    config_.precision = Precision::f32;
  }

  TrainRun run_of(const std::string& name, int64_t steps) const {
    TrainRun run;
    run.config = config_;
    run.budget.steps = steps;
    run.seed = 3;
    run.directory = folder_ / name;
    run.data_identity = "tiny";
    return run;
  }

  TrainResult train_here(Model& model, const TrainRun& run) {
    TextSource source(*shard_, run.config.window, run.seed);
    return train(model, source, held_out_.get(), tokenizer_.get(), run);
  }

  Folder folder_;
  std::unique_ptr<Tokenizer> tokenizer_ = make_byte_tokenizer();
  PreparedTokens made_;
  std::unique_ptr<TokenShard> shard_, held_out_;
  TrainConfig config_;
};

TEST_F(DiffusionTrainingTest, LearnsATinyText) {
  struct Case {
    const char* pattern;
    int64_t block;
  };
  for (const Case& one : {Case{"a m", 0}, Case{"2a", 8}}) {
    SCOPED_TRACE(one.pattern);
    Model model(tiny_diffusion(one.pattern, one.block), 1);
    TrainRun run = run_of(one.pattern, 300);
    run.score_start = true;
    const TrainResult result = train_here(model, run);
    EXPECT_TRUE(result.is_bound);
    // What is masked counts as much as all tokens: a model that knows nothing has 8 bits a byte.
    EXPECT_NEAR(result.start_bits_per_byte.value_or(0), std::log2(257.0), 0.2);
    // The order-0 entropy of the text is 2.9 nats, 4.2 bits a byte.
    ASSERT_TRUE(result.held_out_bits_per_byte);
    EXPECT_LT(*result.held_out_bits_per_byte, 3.5);
    EXPECT_EQ(evaluate_text(model, Precision::f32, *held_out_, 32).bits_per_byte(),
              *result.held_out_bits_per_byte);
  }
}

TEST_F(DiffusionTrainingTest, ResumesToTheBit) {
  for (const int64_t block : {0, 8}) {
    SCOPED_TRACE(block);
    const std::string whole_name = fmt::format("whole{}", block);
    Model whole(tiny_diffusion("a", block), 1);
    train_here(whole, run_of(whole_name, 12));
    TrainRun parts = run_of(fmt::format("parts{}", block), 12);
    parts.on_step = [](const TrainLogLine& line) { return line.step != 5; };
    Model first(tiny_diffusion("a", block), 1);
    EXPECT_TRUE(train_here(first, parts).interrupted);
    parts.on_step = {};
    parts.resume = true;
    Model second(tiny_diffusion("a", block), 99);
    train_here(second, parts);
    EXPECT_TRUE(read_file(parts.directory / "model.safetensors") ==
                read_file(folder_ / whole_name / "model.safetensors"));
  }
}

TEST_F(DiffusionTrainingTest, MicroBatchesGiveTheSameGradient) {
  for (const int64_t block : {0, 8}) {
    const Model model(tiny_diffusion("a", block), 1);
    TextSource source(*shard_, 32, 3);
    config_.clip = 0;
    const auto moments = [&](int64_t micro, uint64_t seed) {
      config_.micro_batch_tokens = micro;
      TrainingState state(model);
      train_step(model, config_, source, state, 0, seed);
      return numbers_of(state.m);
    };
    const auto distance = [](const std::vector<float>& a, const std::vector<float>& b) {
      double difference = 0, norm = 0;
      for (size_t i = 0; i < a.size(); ++i) {
        difference += std::pow(double{a[i]} - b[i], 2);
        norm += std::pow(double{b[i]}, 2);
      }
      return std::sqrt(difference / norm);
    };
    const std::vector<float> whole = moments(0, 3);
    // The same terms in another order.
    for (const int64_t micro : {32, 96}) EXPECT_LT(distance(moments(micro, 3), whole), 1e-5);
    // Other masks are far from that.
    EXPECT_GT(distance(moments(0, 4), whole), 0.01);
  }
}

// A model that predicts the next token keeps its weights; saved, it is a Dream.
TEST_F(DiffusionTrainingTest, AdaptsAModelThatPredictsTheNextToken) {
  const std::filesystem::path golden =
      std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/model/golden/qwen2_tied";
  const auto before = Model::load(golden, Purpose::training);
  const auto adapted = load_to_adapt(golden, 46, 1);
  ASSERT_EQ(adapted->parameters().size(), before->parameters().size());
  for (size_t i = 0; i < before->parameters().size(); ++i) {
    EXPECT_TRUE(std::ranges::equal(adapted->parameters()[i].value.values(),
                                   before->parameters()[i].value.values()));
  }
  ASSERT_TRUE(adapted->config().diffusion);
  EXPECT_TRUE(adapted->config().diffusion->shift);
  EXPECT_EQ(adapted->config().diffusion->mask_token, 46);
  adapted->save(folder_ / "adapted");
  EXPECT_EQ(read_config_json(folder_ / "adapted/config.json").at("model_type"), "Dream");
  EXPECT_TRUE(load_config(folder_ / "adapted").diffusion->shift);
  EXPECT_THAT(error_of([&] { load_to_adapt(folder_ / "adapted", 46, 1); }),
              HasSubstr("a diffusion model already"));
  EXPECT_THAT(error_of([&] { load_to_adapt(golden, 1 << 20, 1); }), HasSubstr("mask token"));
}

TEST_F(DiffusionTrainingTest, SaysWhatItCannot) {
  Model model(tiny_diffusion("a"), 1);
  const auto task = make_task(testing_train::tiny_task("mqar", 32, 64, 2));
  EXPECT_THAT(error_of([&] { train(model, *task, nullptr, nullptr, run_of("task", 2)); }),
              HasSubstr("learns texts, not synthetic tasks"));
  EXPECT_THAT(error_of([&] { evaluate_task(model, Precision::f32, *task, 4); }),
              HasSubstr("predicts no next tokens"));
  const std::vector<int32_t> tokens(40, 7);
  EXPECT_THAT(error_of([&] { evaluate_stream(model, Precision::f32, tokens, 8); }),
              HasSubstr("in windows, not as a stream"));
  TrainRun run = run_of("exit", 2);
  run.config.early_exit = 1;
  EXPECT_THAT(error_of([&] { train_here(model, run); }), HasSubstr("early_exit"));
}

}  // namespace
}  // namespace pronghorn
