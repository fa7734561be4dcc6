// Fine-tuning: training that starts from a checkpoint, whole or by an adapter.
#include "train/finetune.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/files.h"
#include "formats/gguf.h"
#include "formats/safetensors.h"
#include "formats/tokenizer.h"
#include "model/families.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/steps.h"
#include "support/tiny_models.h"
#include "tiny.h"
#include "train/corpus.h"
#include "train/evaluate.h"
#include "train/text_source.h"
#include "train/trainer.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::decode;
using testing_support::equal_steps;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::random_tokens;
using testing_support::relative_difference;
using testing_support::tiny_config;

constexpr int64_t kWindow = 32;

std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/model/golden" / name;
}

std::vector<float> scores(const Model& model, const std::vector<int32_t>& tokens) {
  SequenceState state = model.new_state();
  return decode(model, state, tokens, equal_steps(static_cast<int64_t>(tokens.size()), 7));
}

LoraConfig lora(int64_t rank, std::vector<std::string> targets = {}) {
  return {rank, 0, std::move(targets)};
}

// An adapter that does something: B is not zero.
std::shared_ptr<Adapter> busy_adapter(const Model& model, const LoraConfig& config) {
  std::shared_ptr<Adapter> adapter = Adapter::fresh(model, config, 3);
  Random random(7, "adapter");
  for (const Parameter& parameter : adapter->parameters()) {
    for (float& value : parameter.value.values()) {
      value = static_cast<float>(random.uniform(-0.3, 0.3));
    }
    parameter.value.bump_version();
  }
  return adapter;
}

// One model of each way in which families publish matrices: one by one, several in one, heads by
// heads, the other way round.
const std::string kKinds[] = {"llama", "phi3", "gpt_neox", "gpt2", "gemma2", "mamba2"};

class AdapterTest : public testing::TestWithParam<std::string> {
 protected:
  const std::filesystem::path path_ = golden(GetParam());
  const std::unique_ptr<Model> model_ = Model::load(path_);
  const std::vector<int32_t> tokens_ = random_tokens(45, model_->config().vocab_size, 5);
};

TEST_P(AdapterTest, StartsAsTheModel) {
  const std::vector<float> before = scores(*model_, tokens_);
  model_->set_adapter(Adapter::fresh(*model_, lora(4), 1));
  EXPECT_EQ(bit_difference(scores(*model_, tokens_), before), "");
}

TEST_P(AdapterTest, SurvivesItsFilesAndMerging) {
  const std::vector<float> before = scores(*model_, tokens_);
  model_->set_adapter(busy_adapter(*model_, lora(3)));
  const std::vector<float> adapted = scores(*model_, tokens_);
  EXPECT_GT(relative_difference(adapted, before), 1e-3);

  const Folder folder;
  model_->adapter()->save(*model_, folder.path(), "base");
  const auto again = Model::load(path_);
  again->set_adapter(Adapter::load(*again, folder.path()));
  // Matrices that are published in one have one A of all ranks: other sums, same numbers.
  EXPECT_LE(relative_difference(scores(*again, tokens_), adapted), 1e-5);
  merge_adapter(*again);
  EXPECT_EQ(again->adapter(), nullptr);
  EXPECT_LE(relative_difference(scores(*again, tokens_), adapted), 1e-5);
  // As another program would read the merged model.
  again->save(folder / "merged");
  EXPECT_LE(relative_difference(scores(*Model::load(folder / "merged"), tokens_), adapted), 1e-5);
  // Taken off, nothing is left of it.
  model_->set_adapter(nullptr);
  EXPECT_EQ(bit_difference(scores(*model_, tokens_), before), "");
}

// However the text is cut, with an adapter too.
TEST_P(AdapterTest, KeepsTheLaws) {
  model_->set_adapter(busy_adapter(*model_, lora(2)));
  SequenceState one = model_->new_state(), many = model_->new_state();
  const auto count = static_cast<int64_t>(tokens_.size());
  EXPECT_EQ(bit_difference(decode(*model_, one, tokens_, equal_steps(count, 1)),
                           decode(*model_, many, tokens_, equal_steps(count, 16))),
            "");
}

INSTANTIATE_TEST_SUITE_P(Families, AdapterTest, testing::ValuesIn(kKinds),
                         [](const auto& test) { return test.param; });

TEST(Adapter, ChangesWhatItIsTold) {
  const auto model = Model::load(golden("llama"));
  const auto some = Adapter::fresh(*model, lora(4, {"q_proj", "down_proj"}), 1);
  EXPECT_EQ(some->parts().size(), 4u);  // of two layers
  for (const Parameter& parameter : some->parameters()) {
    EXPECT_THAT(parameter.name, testing::AnyOf(HasSubstr("q_proj"), HasSubstr("down_proj")));
  }
  EXPECT_THAT(error_of([&] { Adapter::fresh(*model, lora(4, {"query"}), 1); }),
              AllOf(HasSubstr("query"), HasSubstr("q_proj")));
}

TEST(Adapter, RefusesFilesThatDoNotFit) {
  const auto model = Model::load(golden("llama"));
  const Folder folder;
  busy_adapter(*model, lora(3))->save(*model, folder.path(), "base");
  const std::filesystem::path file = folder / "adapter_config.json";
  const nlohmann::json good = parse_json(read_file(file), "test");
  const auto error = [&](const char* key, const nlohmann::json& value) {
    nlohmann::json json = good;
    json[key] = value;
    write_file(file, json.dump());
    return error_of([&] { Adapter::load(*model, folder.path()); });
  };
  EXPECT_THAT(error("peft_type", "IA3"), HasSubstr("IA3"));
  EXPECT_THAT(error("use_dora", true), HasSubstr("use_dora"));
  EXPECT_THAT(error("bias", "all"), HasSubstr("bias"));
  EXPECT_THAT(error("modules_to_save", {"lm_head"}), HasSubstr("lm_head"));
  EXPECT_THAT(error("r", 4), AllOf(HasSubstr("lora_A"), HasSubstr("shape")));
  EXPECT_THAT(error("r", 0), HasSubstr("r"));
  EXPECT_THAT(error("rank_pattern", {{"q_proj", "x"}}), HasSubstr("rank_pattern"));
  write_file(file, good.dump());
  EXPECT_THAT(error_of([&] { Adapter::load(*Model::load(golden("qwen3")), folder.path()); }),
              HasSubstr("shape"));
  EXPECT_THAT(error_of([&] { Adapter::load(*Model::load(golden("gpt2")), folder.path()); }),
              HasSubstr("no place"));
}

// A model of bytes that has learned a little, as a checkpoint.
class FinetuneTest : public testing::Test {
 protected:
  void SetUp() override {
    write_file(folder_ / "text.txt", testing_train::tiny_text());
    corpus_ = prepare_corpus({folder_ / "text.txt"}, 0, folder_ / "data");
    shard_ = std::make_unique<TokenShard>(corpus_.files.train);
    held_out_ = std::make_unique<TokenShard>(corpus_.files.held_out);
    Model model(tiny_config("2a"), 1);
    run_here(model, run_of("base", 30, 1e-3));
  }

  static TrainConfig settings(double rate) {
    TrainConfig config;
    config.window = kWindow;
    config.batch_tokens = 4 * kWindow;
    config.learning_rate = rate;
    config.precision = Precision::f32;
    return config;
  }

  TrainRun run_of(const std::string& name, int64_t steps, double rate) {
    TrainRun run;
    run.config = settings(rate);
    run.budget.steps = steps;
    run.directory = folder_ / name;
    run.data_identity = corpus_.identity();
    run.score_start = true;
    return run;
  }

  TrainResult run_here(Model& model, const TrainRun& run) {
    TextSource source(*shard_, kWindow, 4);
    return train(model, source, held_out_.get(), corpus_.tokenizer.get(), run);
  }

  // bits per byte of a checkpoint on the held-out text
  double score(const Model& model) const {
    return evaluate_text(model, Precision::f32, *held_out_, kWindow, 0).bits_per_byte();
  }

  Folder folder_;
  Corpus corpus_;
  std::unique_ptr<TokenShard> shard_, held_out_;
};

TEST_F(FinetuneTest, StartsWhereTheModelIsAndImproves) {
  const double untuned = score(*Model::load(folder_ / "base"));
  for (const bool adapter : {false, true}) {
    std::optional<LoraConfig> config;
    if (adapter) config = lora(4);
    const auto model = load_to_finetune(folder_ / "base", config, 1);
    const std::string name = adapter ? "adapter" : "whole";
    const TrainResult result = run_here(*model, run_of(name, 30, adapter ? 1e-2 : 1e-3));
    EXPECT_NEAR(result.start_bits_per_byte.value(), untuned, 1e-6) << name;
    EXPECT_LT(result.held_out_bits_per_byte.value(), untuned - 0.02) << name;
    // The first step's loss is that of the untuned model on the same examples.
    TextSource source(*shard_, kWindow, 4);
    Model plain(load_config(folder_ / "base"), 1);
    plain.load_weights(folder_ / "base");
    TrainingState state(plain);
    const double first = train_step(plain, settings(0), source, state, 0).loss;
    EXPECT_NEAR(read_train_log(folder_ / name / "log.jsonl").front().loss, first, 1e-5) << name;
    // What is on disk is what was scored.
    auto again = Model::load(adapter ? folder_ / "base" : folder_ / name);
    if (adapter) again->set_adapter(Adapter::load(*again, folder_ / name));
    EXPECT_NEAR(score(*again), result.held_out_bits_per_byte.value(), 1e-4) << name;
  }
}

TEST_F(FinetuneTest, AnAdapterLeavesTheBaseAsItIsStored) {
  const auto model = load_to_finetune(folder_ / "base", lora(4), 1);
  run_here(*model, run_of("adapter", 5, 1e-2));
  for (const Parameter& parameter : model->parameters()) {
    EXPECT_FALSE(parameter.value.defined() && parameter.value.has_grad()) << parameter.name;
    if (!parameter.matrix.defined()) continue;
    EXPECT_FALSE(parameter.matrix.trainable().defined()) << parameter.name;
  }
  const SafetensorsFile before(folder_ / "base" / "model.safetensors");
  model->set_adapter(nullptr);
  model->save(folder_ / "after");
  const SafetensorsFile after(folder_ / "after" / "model.safetensors");
  for (const std::string& name : before.names()) {
    EXPECT_TRUE(std::ranges::equal(before.find(name)->bytes, after.find(name)->bytes)) << name;
  }
  EXPECT_FALSE(std::filesystem::exists(folder_ / "adapter" / "model.safetensors"));
  EXPECT_TRUE(std::filesystem::exists(folder_ / "adapter" / "adapter_config.json"));
}

// A run that is continued with the budget that it has left over, or a larger one.
TEST_F(FinetuneTest, ResumesWithALargerBudget) {
  for (const bool adapter : {false, true}) {
    std::optional<LoraConfig> config;
    if (adapter) config = lora(4);
    const std::string name = adapter ? "adapter" : "whole";
    run_here(*load_to_finetune(folder_ / "base", config, 1), run_of(name, 4, 1e-3));
    TrainRun more = run_of(name, 9, 1e-3);
    more.resume = true;
    const TrainResult result = run_here(*load_to_finetune(folder_ / "base", config, 1), more);
    EXPECT_EQ(result.steps, 9) << name;
    EXPECT_EQ(read_train_log(folder_ / name / "log.jsonl").size(), 9u) << name;
    TrainRun less = run_of(name, 8, 1e-3);
    less.resume = true;
    EXPECT_THAT(error_of([&] { run_here(*load_to_finetune(folder_ / "base", config, 1), less); }),
                HasSubstr("budget.steps: 9 then, 8 now"));
  }
  // Another rank is another run.
  TrainRun other = run_of("adapter", 12, 1e-3);
  other.resume = true;
  EXPECT_THAT(error_of([&] { run_here(*load_to_finetune(folder_ / "base", lora(5), 1), other); }),
              HasSubstr("adapter"));
}

TEST_F(FinetuneTest, NeedsWeights) {
  std::filesystem::create_directories(folder_ / "empty");
  write_file(folder_ / "empty" / "config.json", "{}");
  EXPECT_THAT(error_of([&] { load_to_finetune(folder_ / "empty", {}, 1); }),
              HasSubstr("no weights"));
  EXPECT_FALSE(is_checkpoint(folder_ / "empty"));
  EXPECT_TRUE(is_checkpoint(folder_ / "base"));
  // A new model would be trained in silence, were one of these not known for what it is.
  write_gguf(folder_ / "model", GgufMetadata("model"), {});
  std::filesystem::create_directories(folder_ / "alone");
  for (const char* name : {"MODEL.GGUF", "alone/model.gguf"}) {
    std::filesystem::copy_file(folder_ / "model", folder_ / name);
  }
  for (const char* name : {"model", "MODEL.GGUF", "alone/model.gguf", "alone"}) {
    EXPECT_TRUE(is_checkpoint(folder_ / name)) << name;
  }
  EXPECT_FALSE(is_checkpoint(folder_ / "empty" / "config.json"));
}

// Or it would fail when it is written, after its training.
TEST(Finetune, PackedMatricesAreNotTrained) {
  const auto packed = golden("bitnet_offline");
  EXPECT_THAT(error_of([&] { load_to_finetune(packed, {}, 1); }), HasSubstr("--lora"));
  EXPECT_NO_THROW(load_to_finetune(packed, lora(2), 1));
  EXPECT_NO_THROW(load_to_finetune(golden("bitnet_online"), {}, 1));
}

// A trained model's own settings, but for the rate.
TEST(FinetuneConfig, IsGentle) {
  ModelConfig model = tiny_config();
  model.train = {{"window", 77}, {"learning_rate", 0.01}, {"weight_decay", 0.1}};
  const TrainConfig whole = finetune_config(model, false, nlohmann::json::object(), "m");
  EXPECT_EQ(whole.window, 77);
  EXPECT_LT(whole.learning_rate, 1e-3);
  EXPECT_EQ(whole.weight_decay, 0);
  EXPECT_GT(finetune_config(model, true, nlohmann::json::object(), "m").learning_rate,
            whole.learning_rate);
  EXPECT_EQ(finetune_config(model, false, {{"learning_rate", 0.5}}, "m").learning_rate, 0.5);
}

}  // namespace
}  // namespace pronghorn
