// pronghorn train: a model from a configuration and texts, or a synthetic task.
#include <memory>

#include "base/directory_lock.h"
#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "model/model.h"
#include "train/corpus.h"
#include "train/tasks.h"
#include "train/trainer.h"

namespace pronghorn::app {
namespace {

struct TrainOptions : Common {
  std::filesystem::path config, directory;
  std::vector<std::filesystem::path> data;
  BudgetOptions budget;
  bool resume = false;
  uint64_t seed = 0;
  int64_t vocab_size = 0;
  std::filesystem::path tokenizer;
  int64_t mtp = -1;
  int64_t evaluate_every = 0;
  std::string checkpoint_every = "30s";
  double held_out = 0.05;
  TaskOptions task;
  std::vector<std::string> settings;
};

void check_usage(const TrainOptions& options) {
  const bool text = options.task.name.empty() || task_type(options.task.name).text;
  if (text && options.data.empty()) {
    throw UsageError("--data", "missing",
                     options.task.name.empty() ? "or --task for a synthetic one" : "");
  }
  if (!text && !options.data.empty()) throw UsageError("--task", "needs no --data");
  if (!options.tokenizer.empty() && options.vocab_size > 0) {
    throw UsageError("--tokenizer", "given together with --vocab");
  }
}

void train_command(const TrainOptions& options) {
  ModelConfig config = load_config(options.config);
  nlohmann::json settings = config.train.is_null() ? nlohmann::json::object() : config.train;
  settings.update(parse_settings(options.settings));
  TrainRun run;
  run.config = read_train_config(ConfigReader(settings, options.config.string() + ": train"));
  run.budget = options.budget.budget();
  run.seed = options.seed;
  run.directory = options.directory;
  run.resume = options.resume;
  run.evaluate_every = options.evaluate_every;
  run.checkpoint_seconds = parse_seconds(options.checkpoint_every, "--checkpoint-every");

  check_usage(options);
  const DirectoryLock lock(options.directory);
  if (!options.resume && holds_training_run(options.directory)) {
    throw Error(options.directory.string(), "already holds a training run",
                "continue it with --resume, or choose another --out");
  }

  Corpus corpus;
  std::unique_ptr<TokenShard> shard, held_out;
  std::unique_ptr<DataSource> source;
  if (!options.task.name.empty()) {
    TaskOptions task = options.task;
    if (task_type(task.name).text) task.text = task_text(options.data);
    task.seed = options.seed;
    source = make_task(task);
    run.data_identity = describe(task);
    config.vocab_size = source->vocab_size();
    run.config.window = source->length();
  } else {
    corpus = options.tokenizer.empty()
                 ? prepare_corpus(options.data, options.vocab_size, options.directory / "data",
                                  options.held_out)
                 : prepare_corpus_with(load_tokenizer(options.tokenizer), options.data,
                                       options.directory / "data", options.held_out);
    shard = std::make_unique<TokenShard>(corpus.files.train);
    held_out = std::make_unique<TokenShard>(corpus.files.held_out);
    source = std::make_unique<TextSource>(*shard, run.config.window, options.seed);
    run.data_identity = corpus.identity();
    config.vocab_size = corpus.tokenizer->vocab_size();
  }
  // The model remembers how it was trained: eval and compare take their window from it.
  config.train = write_train_config(run.config);

  if (options.mtp >= 0) config.mtp.heads = options.mtp;

  Model model(config, options.seed);
  spdlog::info("{} parameters, {} tokens a step",
               format_count(static_cast<double>(model.parameter_count())), run.config.batch_tokens);
  const TrainResult result = train(model, *source, held_out.get(), corpus.tokenizer.get(), run);
  if (result.interrupted) {
    throw Error(options.directory.string(), fmt::format("interrupted at step {}", result.steps),
                "continue with the same command and --resume");
  }
  if (options.json) {
    nlohmann::json json = {{"steps", result.steps},
                           {"tokens", result.tokens},
                           {"seconds", result.seconds},
                           {"tokens_per_second", result.tokens_per_second},
                           {"peak_training_bytes", result.peak_bytes},
                           {"parameters", model.parameter_count()},
                           {"directory", options.directory.string()}};
    if (result.held_out_bits_per_byte) {
      json["held_out_bits_per_byte"] = *result.held_out_bits_per_byte;
      json["best_held_out_bits_per_byte"] = *result.best_bits_per_byte;
    }
    if (result.accuracy) json["accuracy"] = *result.accuracy;
    return print_json(json);
  }
  fmt::print("trained     {} steps, {} tokens in {}", result.steps,
             format_count(static_cast<double>(result.tokens)), format_duration(result.seconds));
  if (result.tokens_per_second > 0) {
    fmt::print(" ({} tokens/s, {} of memory)\n", format_count(result.tokens_per_second),
               format_bytes(static_cast<double>(result.peak_bytes)));
  } else {
    fmt::print(", all of them before\n");
  }
  if (result.held_out_bits_per_byte) {
    fmt::print("held out    {:.4f} bits/byte (best {:.4f})\n", *result.held_out_bits_per_byte,
               *result.best_bits_per_byte);
  }
  if (result.accuracy) fmt::print("accuracy    {:.2f}%\n", 100 * *result.accuracy);
  fmt::print("model       {}\n", options.directory.string());
}

}  // namespace

void add_train(CLI::App& app) {
  CLI::App* command = app.add_subcommand("train", "Train a model from a configuration and texts");
  auto options = std::make_shared<TrainOptions>();
  command->add_option("config", options->config, "configuration file")->required();
  command->add_option("--data", options->data, "text files or folders (.txt, .jsonl, .gz)");
  command->add_option("--out", options->directory, "directory for the model and its state")
      ->required();
  add_budget_options(*command, options->budget, true);
  command->add_flag("--resume", options->resume, "continue the run in --out, to the same bits");
  command->add_option("--seed", options->seed, "of weights and of the order of the data")
      ->check(natural_number());
  command
      ->add_option("--vocab", options->vocab_size,
                   "train a SentencePiece BPE of this size on the data (default: bytes)")
      ->check(natural_number());
  command->add_option("--tokenizer", options->tokenizer,
                      "use the tokenizer of this model instead (drafts need the same one)");
  command
      ->add_option("--mtp", options->mtp,
                   "train so many heads for multi-token prediction along with the model")
      ->check(CLI::Range(0, 15));
  command->add_option("--held-out", options->held_out, "share of the text held out")
      ->check(CLI::Range(0.0, 0.5));
  command->add_option("--eval-every", options->evaluate_every, "steps between held-out scores")
      ->check(positive_integer());
  command->add_option("--checkpoint-every", options->checkpoint_every,
                      "time between saved states (default 30s)");
  add_task_options(*command, options->task);
  command
      ->add_option("--set", options->settings,
                   "a training setting, KEY=VALUE (window, batch_tokens, learning_rate, ...)")
      ->allow_extra_args(false);
  add_common_options(*command, *options);
  command->callback([options] { train_command(*options); });
}

}  // namespace pronghorn::app
