// The training loop: it learns, resumes bit for bit, does not depend on threads or micro-batches,
// and stops before it saves nonsense.
#include "train/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/log.h"
#include "base/threads.h"
#include "formats/safetensors.h"
#include "ops/cross_entropy.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/tiny_models.h"
#include "train/evaluate.h"
#include "train/tasks.h"
#include "train/tiny.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::tiny_config;
using testing_train::tiny_task;
using testing_train::tiny_text;

class Quiet : public testing::Environment {
  void SetUp() override {
    set_up_log(true);
    Progress::set_enabled(false);
  }
};
const auto* const kQuiet = testing::AddGlobalTestEnvironment(new Quiet);

TrainConfig tiny_train() {
  TrainConfig config;
  config.window = 32;
  config.batch_tokens = 256;
  config.learning_rate = 0.01;
  config.precision = Precision::f32;
  return config;
}

std::vector<float> weights_of(const Model& model) {
  std::vector<float> all;
  for (const Parameter& parameter : model.parameters()) {
    all.insert(all.end(), parameter.value.values().begin(), parameter.value.values().end());
  }
  return all;
}

class TrainerTest : public testing::Test {
 protected:
  TrainerTest() {
    write_file(folder_ / "t.txt", tiny_text());
    made_ = prepare_tokens({folder_ / "t.txt"}, *tokenizer_, folder_ / "data");
    shard_ = std::make_unique<TokenShard>(made_.train);
    held_out_ = std::make_unique<TokenShard>(made_.held_out);
  }
  ~TrainerTest() override { set_thread_count(threads_); }

  TrainRun run_of(const std::string& name, int64_t steps) {
    TrainRun run;
    run.config = tiny_train();
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
  int threads_ = thread_count();
};

TEST_F(TrainerTest, LearnsATinyText) {
  Model model(tiny_config("a m s g"), 1);
  TrainRun run = run_of("run", 150);
  run.config.precision = Precision::bf16;
  const TrainResult result = train_here(model, run);
  const auto log = read_train_log(folder_ / "run" / "log.jsonl");
  ASSERT_EQ(log.size(), 150u);
  // A model that knows nothing has ln 256 = 5.55 nats; the order-0 entropy of this text is 2.9.
  EXPECT_NEAR(log.front().loss, std::log(256.0), 0.3);
  EXPECT_LT(log.back().loss, 1.2);
  EXPECT_EQ(result.steps, 150);
  EXPECT_EQ(result.tokens, 150 * 256);
  EXPECT_FALSE(result.interrupted);
  ASSERT_TRUE(result.held_out_bits_per_byte && result.best_bits_per_byte);
  EXPECT_LT(*result.held_out_bits_per_byte, 1.2 / std::log(2.0) + 0.4);
  EXPECT_LE(*result.best_bits_per_byte, *result.held_out_bits_per_byte);
  EXPECT_GT(result.peak_bytes, model.parameter_count() * 4 * 4);  // weights, gradients, two moments
}

TEST_F(TrainerTest, WritesWhatTheContractSays) {
  Model model(tiny_config(), 1);
  TrainRun run = run_of("run", 40);
  run.evaluate_every = 10;
  const TrainResult result = train_here(model, run);
  std::string text = read_file(folder_ / "run" / "log.jsonl");
  int64_t step = 0, scores = 0;
  double best = std::numeric_limits<double>::infinity(), seconds = 0;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    ASSERT_NE(end, text.npos) << "a line without an end";
    const auto line = nlohmann::json::parse(text.substr(0, end));
    text.erase(0, end + 1);
    ++step;
    for (const char* key : {"step", "tokens", "loss", "lr", "tokens_per_second", "seconds"}) {
      ASSERT_TRUE(line.contains(key) && line[key].is_number()) << key;
    }
    EXPECT_EQ(line["step"], step);
    EXPECT_EQ(line["tokens"], step * 256);
    EXPECT_GT(line["seconds"], seconds);
    seconds = line["seconds"];
    EXPECT_EQ(line.contains("held_out_bits_per_byte"), step % 10 == 0 && step < 40);
    if (line.contains("held_out_bits_per_byte")) {
      ++scores;
      best = std::min(best, line["held_out_bits_per_byte"].get<double>());
    }
  }
  EXPECT_EQ(step, 40);
  EXPECT_EQ(scores, 3);
  EXPECT_EQ(*result.best_bits_per_byte, std::min(best, *result.held_out_bits_per_byte));
  for (const char* name : {"config.json", "model.safetensors", "training_state.safetensors",
                           "best/config.json", "best/model.safetensors"}) {
    EXPECT_TRUE(std::filesystem::exists(folder_ / "run" / name)) << name;
  }
  EXPECT_EQ(weights_of(*Model::load(folder_ / "run", Purpose::training)), weights_of(model));
}

TEST_F(TrainerTest, BestIsTheModelOfTheBestScore) {
  // A rate that destroys the model late: best/ must hold an earlier one.
  Model model(tiny_config(), 1);
  TrainRun run = run_of("run", 20);
  run.evaluate_every = 5;
  run.config.learning_rate = 0.003;
  train_here(model, run);
  TrainRun ruin = run_of("run2", 20);
  ruin.evaluate_every = 1;
  ruin.config.schedule = Schedule::wsd;
  ruin.config.warmup = 1;  // the rate rises to the end
  ruin.config.learning_rate = 3;
  Model ruined(tiny_config(), 1);
  const TrainResult result = train_here(ruined, ruin);
  ASSERT_LT(*result.best_bits_per_byte, *result.held_out_bits_per_byte);
  const auto best = Model::load(folder_ / "run2/best");
  const TextScore score = evaluate_text(*best, Precision::f32, *held_out_, 32);
  EXPECT_EQ(score.bits_per_byte(), *result.best_bits_per_byte);
}

// What of a log line must not depend on the clock.
std::string untimed(const TrainLogLine& line) {
  return fmt::format("{} {} {} {} {} {}", line.step, line.tokens, line.loss, line.learning_rate,
                     line.gradient_norm, line.held_out_bits_per_byte.value_or(-1));
}

std::vector<std::string> untimed_log(const std::filesystem::path& directory) {
  std::vector<std::string> lines;
  for (const auto& line : read_train_log(directory / "log.jsonl")) lines.push_back(untimed(line));
  return lines;
}

// Stops a run by an error after `steps` steps, as a crash would.
class Failing final : public DataSource {
 public:
  Failing(DataSource& source, uint64_t examples) : source_(source), examples_(examples) {}
  int64_t length() const override { return source_.length(); }
  int64_t vocab_size() const override { return source_.vocab_size(); }
  void fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) override {
    if (index >= examples_) throw Error("source", "power cut");
    source_.fill(index, tokens, targets);
  }

 private:
  DataSource& source_;
  uint64_t examples_;
};

TEST_F(TrainerTest, ResumesToTheBit) {
  Model whole(tiny_config("a m (s) g"), 1);
  const TrainRun run = run_of("whole", 30);
  const TrainResult expected = train_here(whole, run);

  // checkpoint_seconds 0: a state after every step; 1e9: only the one at the start.
  for (const double checkpoint_seconds : {0.0, 1e9}) {
    TrainRun parts = run_of(fmt::format("parts{}", checkpoint_seconds), 30);
    parts.checkpoint_seconds = checkpoint_seconds;
    TextSource source(*shard_, parts.config.window, parts.seed);
    for (const uint64_t steps : {7, 8, 20}) {
      Model model(tiny_config("a m (s) g"), 99);  // the weights come from the state
      if (!parts.resume) model = Model(tiny_config("a m (s) g"), 1);
      Failing failing(source, steps * 8);
      EXPECT_THAT(
          error_of([&] { train(model, failing, held_out_.get(), tokenizer_.get(), parts); }),
          HasSubstr("power cut"));
      parts.resume = true;
    }
    // The cut-off line of a killed run.
    write_file(parts.directory / "log.jsonl",
               read_file(parts.directory / "log.jsonl") + R"({"step": 9, "los)");
    Model model(tiny_config("a m (s) g"), 99);
    const TrainResult result = train_here(model, parts);
    EXPECT_EQ(weights_of(model), weights_of(whole));
    EXPECT_EQ(untimed_log(parts.directory), untimed_log(run.directory));
    EXPECT_EQ(result.held_out_bits_per_byte, expected.held_out_bits_per_byte);
    EXPECT_EQ(result.best_bits_per_byte, expected.best_bits_per_byte);
    EXPECT_TRUE(read_file(parts.directory / "model.safetensors") ==
                read_file(run.directory / "model.safetensors"));
    EXPECT_TRUE(read_file(parts.directory / "best/model.safetensors") ==
                read_file(run.directory / "best/model.safetensors"));
  }
}

TEST_F(TrainerTest, ARunThatDiedInItsFirstStepIsBegunAgain) {
  Model model(tiny_config(), 1), again(tiny_config(), 1), whole(tiny_config(), 1);
  TextSource source(*shard_, 32, 3);
  Failing failing(source, 0);
  EXPECT_THAT(
      error_of([&] { train(model, failing, held_out_.get(), tokenizer_.get(), run_of("run", 3)); }),
      HasSubstr("power cut"));
  EXPECT_FALSE(holds_training_run(folder_ / "run"));
  std::filesystem::copy(folder_ / "run", folder_ / "resumed");
  // With other settings, as one would try where memory was short.
  TrainRun smaller = run_of("run", 3);
  smaller.config.batch_tokens = 128;
  train_here(again, smaller);
  smaller.directory = folder_ / "whole";
  train_here(whole, smaller);
  EXPECT_EQ(weights_of(again), weights_of(whole));
  EXPECT_TRUE(holds_training_run(folder_ / "run"));
  // As comparisons do, which resume whatever there is.
  Model resumed(tiny_config(), 1);
  smaller.directory = folder_ / "resumed";
  smaller.resume = true;
  train_here(resumed, smaller);
  EXPECT_EQ(weights_of(resumed), weights_of(whole));
  // What cannot be read is not overwritten either.
  write_file(folder_ / "run/training_state.safetensors", "damaged");
  EXPECT_TRUE(holds_training_run(folder_ / "run"));
}

TEST_F(TrainerTest, SpeedIsThatOfTheWholeRun) {
  TrainRun run = run_of("run", 3);
  Model model(tiny_config(), 1);
  const TrainResult first = train_here(model, run);
  EXPECT_DOUBLE_EQ(first.tokens_per_second, 3 * 256 / first.seconds);
  run.resume = true;
  run.budget.steps = 5;
  const TrainResult resumed = train_here(model, run);
  EXPECT_GT(resumed.seconds, first.seconds);
  EXPECT_DOUBLE_EQ(resumed.tokens_per_second, 5 * 256 / resumed.seconds);
  EXPECT_GT(resumed.peak_bytes, 0);
  // Nothing is left to do: the same speed, and no memory.
  const TrainResult done = train_here(model, run);
  EXPECT_DOUBLE_EQ(done.tokens_per_second, resumed.tokens_per_second);
  EXPECT_EQ(done.peak_bytes, 0);
}

TEST_F(TrainerTest, RefusesToMixRuns) {
  Model model(tiny_config(), 1);
  train_here(model, run_of("run", 2));
  const std::string before = read_file(folder_ / "run/training_state.safetensors");
  EXPECT_THAT(error_of([&] { train_here(model, run_of("run", 2)); }),
              AllOf(HasSubstr("already holds"), HasSubstr("resume it")));
  TrainRun other = run_of("run", 2);
  other.resume = true;
  other.seed = 4;
  EXPECT_THAT(error_of([&] { train_here(model, other); }), HasSubstr("another seed: 3 then, 4"));
  other = run_of("run", 2);
  other.resume = true;
  other.config.clip = 2;
  EXPECT_THAT(error_of([&] { train_here(model, other); }),
              HasSubstr("training configuration.clip: 1.0 then, 2.0 now"));
  EXPECT_TRUE(read_file(folder_ / "run/training_state.safetensors") == before);
  TrainRun two = run_of("two", 2);
  two.budget.tokens = 5;
  EXPECT_THAT(error_of([&] { train_here(model, two); }), HasSubstr("exactly one"));
}

TEST_F(TrainerTest, ThreadsGiveTheSameBits) {
  for (const int threads : {1, 2, 4}) {
    for (const int64_t micro : {0, 64}) {
      set_thread_count(threads);
      Model model(tiny_config("a m s g"), 1);
      TrainRun run = run_of(fmt::format("t{}_{}", threads, micro), 5);
      run.config.micro_batch_tokens = micro;
      run.config.precision = Precision::bf16;
      train_here(model, run);
    }
    for (const char* micro : {"0", "64"}) {
      EXPECT_TRUE(
          read_file(folder_ / fmt::format("t{}_{}", threads, micro) / "model.safetensors") ==
          read_file(folder_ / fmt::format("t1_{}", micro) / "model.safetensors"))
          << threads << " threads, micro batches of " << micro;
    }
  }
}

// The moments after one step from zero are the gradient up to a factor: m = (1 - beta1) g.
std::vector<float> gradients_of(const Model& model, TrainConfig config, DataSource& source) {
  config.clip = 0;
  TrainingState state(model);
  train_step(model, config, source, state, 0);
  std::vector<float> all;
  for (const Tensor& m : state.m) {
    for (const float x : m.values()) all.push_back(x / static_cast<float>(1 - config.beta1));
  }
  return all;
}

TEST_F(TrainerTest, MicroBatchesGiveTheSameGradient) {
  const Model model(tiny_config("a m s g"), 1);
  TextSource text(*shard_, 32, 3);
  const auto task = make_task(tiny_task("mqar", 32, 64, 2));  // few targets, unevenly spread
  for (DataSource* source : {static_cast<DataSource*>(&text), task.get()}) {
    TrainConfig config = tiny_train();
    const std::vector<float> whole = gradients_of(model, config, *source);
    double norm = 0;
    for (const float x : whole) norm += static_cast<double>(x) * x;
    ASSERT_GT(norm, 0);
    for (const int64_t micro : {1, 32, 64, 96, 128, 100000}) {
      config.micro_batch_tokens = micro;
      const std::vector<float> parts = gradients_of(model, config, *source);
      double difference = 0;
      for (size_t i = 0; i < whole.size(); ++i) {
        difference += std::pow(static_cast<double>(whole[i]) - parts[i], 2);
      }
      // The same terms in another order: some hundreds of f32 roundings (6e-8) of terms that
      // partly cancel.
      EXPECT_LT(std::sqrt(difference / norm), 1e-5) << micro;
    }
  }
}

// The loss of one step as the documentation has it: the model's, and 0.3 times those of an early
// exit and (in the mean) of the heads, head k of token t predicting token t + k + 2 from the one
// before it.
double loss_with_drafts(const Model& model, const TrainConfig& config, DataSource& source) {
  const int64_t length = source.length(), sequences = config.batch_tokens / length;
  double nll = 0, drafts = 0;
  for (int64_t i = 0; i < sequences; ++i) {
    std::vector<int32_t> tokens(static_cast<size_t>(length)), targets(tokens.size());
    source.fill(static_cast<uint64_t>(i), tokens, targets);
    Tensor early;
    ForwardObserver observer;
    observer.on_block = [&](const BlockEnd& end) {
      if (end.layers == 2) early = end.hidden();
      return true;
    };
    const Tensor hidden = model.forward({}, fresh_segments(tokens, length), observer);
    const auto loss = [&](const Tensor& x, std::span<const int32_t> wanted) {
      return model.cross_entropy({}, x, wanted, 1, 0).nll;
    };
    nll += loss(hidden, targets);
    drafts += 0.3 * loss(early, targets);
    Tensor last = hidden;
    for (int64_t k = 0; k < model.mtp_depth(); ++k) {
      // Only the rows that know both tokens, which no later row changes.
      const auto rows = static_cast<size_t>(length - k - 1);
      const std::span<const int32_t> next = std::span(tokens).subspan(static_cast<size_t>(k) + 1);
      last = model.mtp_forward({}, k, last.row_slice(0, static_cast<int64_t>(rows)),
                               fresh_segments(next, static_cast<int64_t>(rows)));
      drafts += 0.3 / static_cast<double>(model.mtp_depth()) *
                loss(last, std::span(targets).subspan(static_cast<size_t>(k) + 1));
    }
  }
  return (nll + drafts) / static_cast<double>(sequences * length);
}

TEST_F(TrainerTest, HeadsAndExitsLearnAlong) {
  for (const char* pattern : {"a m s g", "a s m a"}) {
    ModelConfig model_config = tiny_config(pattern);
    model_config.mtp.heads = 2;
    const Model model(model_config, 1);
    TextSource source(*shard_, 32, 3);
    TrainConfig config = tiny_train();
    config.early_exit = 2;
    const std::vector<float> gradient = gradients_of(model, config, source);
    double norm = 0;
    for (const float x : gradient) norm += static_cast<double>(x) * x;
    // A step along the gradient changes the loss by its squared norm.
    const auto move = [&](double step) {
      size_t next = 0;
      for (const Parameter& parameter : model.parameters()) {
        for (float& x : parameter.value.values()) {
          x += static_cast<float>(step * gradient[next++] / std::sqrt(norm));
        }
        parameter.value.bump_version();
      }
    };
    constexpr double kStep = 1e-2;
    move(kStep);
    const double above = loss_with_drafts(model, config, source);
    move(-2 * kStep);
    const double below = loss_with_drafts(model, config, source);
    // The third derivative's share, and f32 sums of a loss of 9 to some 1e-7 over 2e-2.
    EXPECT_NEAR((above - below) / (2 * kStep) / std::sqrt(norm), 1, 0.01) << pattern;
  }
  ModelConfig model_config = tiny_config("a m s g");
  model_config.mtp.heads = 1;
  Model model(model_config, 1);
  TrainRun run = run_of("run", 150);
  run.config.early_exit = 2;
  train_here(model, run);
  TextSource source(*shard_, 32, 4);
  // The model, an exit at 0.3 and a head at 0.3, each near what LearnsATinyText asks for.
  EXPECT_LT(loss_with_drafts(model, run.config, source), 1.6 * 1.4);
  // All of it comes back from disk.
  const auto loaded = Model::load(folder_ / "run", Purpose::training);
  EXPECT_EQ(loaded->mtp_depth(), 1);
  EXPECT_EQ(loss_with_drafts(*loaded, run.config, source),
            loss_with_drafts(model, run.config, source));
  run.config.early_exit = 5;
  run.directory = folder_ / "deep";
  EXPECT_THAT(error_of([&] { train_here(model, run); }), HasSubstr("early_exit"));
}

TEST_F(TrainerTest, StopsAtNumbersThatAreNotFinite) {
  Model model(tiny_config(), 1);
  TrainRun run = run_of("run", 10);
  run.checkpoint_seconds = 0;
  TextSource source(*shard_, 32, 3);
  Failing failing(source, 4 * 8);
  EXPECT_THAT(error_of([&] { train(model, failing, held_out_.get(), tokenizer_.get(), run); }),
              HasSubstr("power cut"));
  const std::string good = read_file(folder_ / "run/training_state.safetensors");

  // One weight poisoned, as by a fault of memory.
  const Parameter& poisoned = model.parameters().back();
  poisoned.value.values()[0] = std::numeric_limits<float>::quiet_NaN();
  poisoned.value.bump_version();
  TrainingState state(model);
  state.step = 4;
  const std::vector<float> before = weights_of(model);
  const std::string message = error_of([&] { train_step(model, run.config, source, state, 0.1); });
  EXPECT_THAT(message, AllOf(HasSubstr("training step 5"), HasSubstr("not finite"),
                             HasSubstr("first bad gradient: "), HasSubstr("last good state")));
  EXPECT_THAT(message, testing::Not(HasSubstr("first bad gradient: none")));
  EXPECT_EQ(state.step, 4);
  const std::vector<float> after = weights_of(model);
  EXPECT_EQ(std::memcmp(before.data(), after.data(), before.size() * sizeof(float)), 0);
  for (const Parameter& parameter : model.parameters()) EXPECT_FALSE(parameter.value.has_grad());
  EXPECT_TRUE(read_file(folder_ / "run/training_state.safetensors") == good);

  // The run goes on from there as if nothing had been.
  run.resume = true;
  Model resumed(tiny_config(), 2), whole(tiny_config(), 1);
  train_here(resumed, run);
  train_here(whole, run_of("whole", 10));
  EXPECT_EQ(weights_of(resumed), weights_of(whole));
}

TEST_F(TrainerTest, AnOverflowingRunKeepsItsLastGoodState) {
  Model model(tiny_config(), 1);
  TrainRun run = run_of("run", 200);
  run.checkpoint_seconds = 0;
  run.config.learning_rate = 10;
  run.config.weight_decay = 10;  // weights grow by a factor of 99 a step
  run.config.final_learning_rate = 1;
  run.config.warmup = 0;
  run.config.clip = 0;
  const std::string message = error_of([&] { train_here(model, run); });
  EXPECT_THAT(message, AllOf(HasSubstr("training step "), HasSubstr("not finite")));
  // What lies on disk can be read, and is finite.
  const SafetensorsFile file(folder_ / "run/training_state.safetensors");
  const auto* entry = file.find("parameter." + model.parameters().front().name);
  ASSERT_NE(entry, nullptr);
  for (size_t i = 0; i + 4 <= entry->bytes.size(); i += 4) {
    float value = 0;
    std::memcpy(&value, entry->bytes.data() + i, 4);
    ASSERT_TRUE(std::isfinite(value));
  }
}

TEST_F(TrainerTest, DecaysMatricesOnly) {
  const Model decayed(tiny_config("a m s g"), 1), plain(tiny_config("a m s g"), 1);
  TextSource source(*shard_, 32, 3);
  TrainConfig config = tiny_train();
  config.weight_decay = 0.5;
  TrainingState one(decayed), two(plain);
  constexpr double kRate = 0.1;
  train_step(decayed, config, source, one, kRate);
  config.weight_decay = 0;
  train_step(plain, config, source, two, kRate);
  const Model start(tiny_config("a m s g"), 1);
  int matrices = 0, others = 0;
  for (size_t i = 0; i < start.parameters().size(); ++i) {
    const Parameter& parameter = start.parameters()[i];
    SCOPED_TRACE(parameter.name);
    const auto with = decayed.parameters()[i].value.values();
    const auto without = plain.parameters()[i].value.values();
    const auto before = parameter.value.values();
    // Norms, biases, step sizes, D and A_log are free of decay; the taps of convolutions are not.
    const bool matrix = parameter.name.ends_with(".weight") && parameter.value.shape().size() >= 2;
    EXPECT_EQ(parameter.decay, matrix);
    (matrix ? matrices : others) += 1;
    for (size_t j = 0; j < before.size(); ++j) {
      // AdamW (arXiv 1711.05101, algorithm 2): both differ by rate * decay * weight.
      const double expected = matrix ? kRate * 0.5 * before[j] : 0;
      ASSERT_NEAR(without[j] - with[j], expected, 1e-6) << j;  // a few roundings of weights near 1
    }
  }
  EXPECT_GT(matrices, 5);
  EXPECT_GT(others, 5);
}

// From a start at which every token is given to expert 0, among others.
TEST_F(TrainerTest, ACorrectionBalancesTheLoadOfExperts) {
  for (const double step : {0.0, 0.04}) {
    nlohmann::json json = testing_support::tiny_json("2a");
    json["vocab_size"] = 256;
    json["blocks"]["a"]["ffn"] = {{"type", "moe"},
                                  {"experts", 4},
                                  {"top_k", 2},
                                  {"size", 16},
                                  {"scores", "sigmoid"},
                                  {"correction", true},
                                  {"correction_step", step},
                                  {"balance_loss", 0.01}};
    Model model(read_pronghorn_config(ConfigReader(json, "tiny")), 1);
    for (const Parameter& parameter : model.parameters()) {
      const bool correction = parameter.name.ends_with("e_score_correction_bias");
      EXPECT_EQ(parameter.learning, correction ? Learning::sign : Learning::loss);
      if (correction) parameter.value.data()[0] = 1;
    }
    const std::string name = fmt::format("run{}", step);
    const TrainResult result = train_here(model, run_of(name, 60));
    const auto log = read_train_log(folder_ / name / "log.jsonl");
    ASSERT_TRUE(log.front().expert_shares.has_value());
    EXPECT_DOUBLE_EQ(log.front().expert_shares->most, 2);  // all tokens, which is twice its share
    EXPECT_GT(log.front().layer_losses.at("balance"), 0);
    if (step == 0) {
      EXPECT_DOUBLE_EQ(result.expert_loads.most(), 2);
      continue;
    }
    EXPECT_LT(result.expert_loads.most(), 1.6);
    EXPECT_GT(result.expert_loads.least(), 0.4);
    EXPECT_EQ(result.expert_loads.shares().size(), 2u);
  }
}

// In inference experts that choose take about as many tokens as in training; activations that are
// computed again are of the same choices.
TEST_F(TrainerTest, ThresholdsOfExpertsComeToTakeWhatTrainingGivesThem) {
  nlohmann::json json = testing_support::tiny_json("2a");
  json["vocab_size"] = 256;
  json["blocks"]["a"]["ffn"] = {
      {"type", "moe"}, {"experts", 4}, {"top_k", 2}, {"size", 16}, {"choice", "expert"}};
  std::vector<double> losses;
  for (const bool recompute : {false, true}) {
    json["recompute"] = recompute;
    Model model(read_pronghorn_config(ConfigReader(json, "tiny")), 1);
    for (const Parameter& parameter : model.parameters()) {
      EXPECT_EQ(parameter.learning,
                parameter.name.ends_with("gate.threshold") ? Learning::average : Learning::loss);
    }
    const std::string name = fmt::format("choice{}", recompute);
    const TrainResult result = train_here(model, run_of(name, 60));
    const TrainLogLine last = read_train_log(folder_ / name / "log.jsonl").back();
    EXPECT_DOUBLE_EQ(last.expert_shares->most, 1);
    EXPECT_DOUBLE_EQ(last.expert_shares->least, 1);
    EXPECT_LT(result.expert_loads.most(), 1.5) << "of the held-out text, by thresholds";
    EXPECT_GT(result.expert_loads.least(), 0.6);
    // Each of the two layers would take two experts' worth of every token.
    constexpr int64_t kTokens = 256;
    std::vector<int32_t> text(kTokens);
    shard_->read(0, text);
    int64_t taken = 0;
    ForwardObserver observer;
    observer.on_load = [&](const ExpertLoad& load) {
      for (const int64_t rows : load.rows) taken += rows;
    };
    model.forward({}, fresh_segments(text, 32), observer);
    EXPECT_NEAR(static_cast<double>(taken) / (2 * kTokens), 2, 0.4);
    losses.push_back(last.loss);
  }
  EXPECT_NEAR(losses[0], losses[1], 1e-5);
}

// From scores that are all below 0, where the loss has no gradient.
TEST_F(TrainerTest, ASubsampledSpanComesToKeepItsShare) {
  Model model(tiny_config("a (m) a"), 1);
  for (const Parameter& parameter : model.parameters()) {
    EXPECT_EQ(parameter.learning == Learning::average,
              parameter.name == "spans.0.score.bias" || parameter.name == "spans.0.score.shift");
    if (parameter.name == "spans.0.score.bias") parameter.value.fill(-20);
  }
  const double before = evaluate_text(model, Precision::f32, *held_out_, 32).kept_shares().at(0);
  EXPECT_EQ(before, 0);
  train_here(model, run_of("spans", 60));
  const double after = evaluate_text(model, Precision::f32, *held_out_, 32).kept_shares().at(0);
  EXPECT_NEAR(after, 0.64, 0.1);
}

TEST_F(TrainerTest, ClipsTheNormOfTheGradient) {
  const Model model(tiny_config(), 1);
  TextSource source(*shard_, 32, 3);
  TrainConfig config = tiny_train();
  const auto norm_of_m = [&](double clip) {
    config.clip = clip;
    TrainingState state(model);
    const StepResult result = train_step(model, config, source, state, 0);
    double squares = 0;
    for (const Tensor& m : state.m) {
      for (const float x : m.values()) squares += static_cast<double>(x) * x;
    }
    return std::pair(result.gradient_norm, std::sqrt(squares) / (1 - config.beta1));
  };
  const auto [norm, free] = norm_of_m(0);
  EXPECT_NEAR(free, norm, 1e-5 * norm);  // f32 moments
  const auto [reported, clipped] = norm_of_m(norm / 8);
  EXPECT_EQ(reported, norm);  // as it was before clipping
  EXPECT_NEAR(clipped, norm / 8, 1e-5 * norm);
  EXPECT_NEAR(norm_of_m(norm * 2).second, norm, 1e-5 * norm);
}

TEST_F(TrainerTest, TrainsOnATask) {
  Model model(
      [] {
        ModelConfig config = tiny_config("2a");
        config.vocab_size = 16;
        return config;
      }(),
      1);
  const auto task = make_task(tiny_task("induction_heads", 16));
  TrainRun run = run_of("run", 5);
  const TrainResult result = train(model, *task, nullptr, nullptr, run);
  ASSERT_TRUE(result.accuracy.has_value());
  EXPECT_GE(*result.accuracy, 0);
  EXPECT_LE(*result.accuracy, 1);
  EXPECT_FALSE(result.held_out_bits_per_byte.has_value());
  EXPECT_FALSE(std::filesystem::exists(folder_ / "run/best"));
}

TEST_F(TrainerTest, ReadsADamagedLog) {
  const auto path = folder_ / "log.jsonl";
  EXPECT_TRUE(read_train_log(path).empty());
  write_file(path,
             "{\"step\": 1, \"loss\": 2.5}\nnot json\n[1]\n{\"step\": 2, \"loss\": null}\n"
             "{\"step\": \"x\"}\n\n{\"step\": 3, \"held_out_bits_per_byte\": null}\n{\"step\": 4");
  const auto log = read_train_log(path);
  ASSERT_FALSE(log.empty());
  EXPECT_EQ(log.front().loss, 2.5);
  EXPECT_EQ(log.back().step, 3);
  EXPECT_EQ(read_train_log(path, 1).size(), 1u);
}

}  // namespace
}  // namespace pronghorn
