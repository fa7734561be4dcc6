// pronghorn train: a model from a configuration or a checkpoint and texts, or a synthetic task.
#include <memory>
#include <optional>
#include <utility>

#include "base/directory_lock.h"
#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "formats/json.h"
#include "model/model.h"
#include "train/corpus.h"
#include "train/finetune.h"
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
  LoraConfig lora{.rank = 0};
  bool masked_diffusion = false;
  int64_t mask_token = -1;
};

// trained: it goes on with a model that has its weights and tokenizer.
void check_usage(const TrainOptions& options, bool trained) {
  if (trained) {
    for (const auto& [given, option] : {std::pair(!options.task.name.empty(), "--task"),
                                        {options.vocab_size > 0, "--vocab"},
                                        {!options.tokenizer.empty(), "--tokenizer"},
                                        {options.mtp >= 0, "--mtp"}}) {
      if (given) throw UsageError(option, "does not go with a trained model", "omit it");
    }
    if (options.masked_diffusion && options.lora.rank > 0) {
      throw UsageError("--masked-diffusion", "changes all weights", "omit --lora");
    }
  } else if (options.lora.rank > 0) {
    throw UsageError("--lora", "changes a trained model", "give one, not a configuration");
  } else if (options.masked_diffusion) {
    throw UsageError("--masked-diffusion", "changes a trained model",
                     "a configuration has the key \"diffusion\"");
  }
  if (options.mask_token >= 0 && !options.masked_diffusion) {
    throw UsageError("--mask-token", "is for --masked-diffusion");
  }
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

// A corpus and what is read of it.
struct TextData {
  Corpus corpus;
  std::unique_ptr<TokenShard> shard, held_out;
};

std::unique_ptr<DataSource> read_texts(const TrainOptions& options, Corpus corpus, TextData& data,
                                       TrainRun& run) {
  data.corpus = std::move(corpus);
  data.shard = std::make_unique<TokenShard>(data.corpus.files.train);
  data.held_out = std::make_unique<TokenShard>(data.corpus.files.held_out);
  run.data_identity = data.corpus.identity();
  return std::make_unique<TextSource>(*data.shard, run.config.window, options.seed);
}

Corpus corpus_with(const TrainOptions& options, const std::filesystem::path& tokenizer) {
  return prepare_corpus_with(load_tokenizer(tokenizer), options.data, options.directory / "data",
                             options.held_out);
}

// The configuration of a new model, and how it is to be trained.
ModelConfig read_config(const TrainOptions& options, TrainRun& run) {
  require(!std::filesystem::is_directory(options.config), options.config.string(),
          "is a directory without weights (to train new ones, give a configuration file)");
  ModelConfig config = load_config(options.config);
  nlohmann::json settings = config.train.is_null() ? nlohmann::json::object() : config.train;
  settings.update(parse_settings(options.settings));
  run.config = read_train_config(ConfigReader(settings, options.config.string() + ": train"));
  return config;
}

std::unique_ptr<Model> new_model(const TrainOptions& options, ModelConfig config, TrainRun& run,
                                 TextData& data, std::unique_ptr<DataSource>& source) {
  if (!options.task.name.empty()) {
    TaskOptions task = options.task;
    if (task_type(task.name).text) task.text = task_text(options.data);
    task.seed = options.seed;
    source = make_task(task);
    run.data_identity = describe(task);
    set_vocabulary(config, source->vocab_size());
    run.config.window = source->length();
  } else {
    Corpus corpus = options.tokenizer.empty()
                        ? prepare_corpus(options.data, options.vocab_size,
                                         options.directory / "data", options.held_out)
                        : corpus_with(options, options.tokenizer);
    set_vocabulary(config, corpus.tokenizer->vocab_size());
    source = read_texts(options, std::move(corpus), data, run);
  }
  // The model remembers how it was trained: eval and compare take their window from it.
  config.train = write_train_config(run.config);
  if (options.mtp >= 0) {
    config.mtp.heads = options.mtp;
    // Read again: not every model can have heads.
    config =
        read_pronghorn_config({write_pronghorn_config(config), options.config.string() + " --mtp"});
  }
  return std::make_unique<Model>(std::move(config), options.seed);
}

// The token that masks in a model that knows of none: the first that its tokenizer does not have.
int64_t mask_token_of(const TrainOptions& options) {
  if (options.mask_token >= 0) return options.mask_token;
  const int64_t tokens = load_tokenizer(options.config)->vocab_size();
  if (tokens < load_config(options.config).vocab_size) return tokens;
  throw UsageError("--mask-token", "missing: the tokenizer has the whole vocabulary",
                   "give the number of a token that texts do not have");
}

// A trained model that goes on with other texts.
std::unique_ptr<Model> trained_model(const TrainOptions& options, TrainRun& run, TextData& data,
                                     std::unique_ptr<DataSource>& source) {
  std::optional<LoraConfig> lora;
  if (options.lora.rank > 0) lora = options.lora;
  std::unique_ptr<Model> model =
      options.masked_diffusion ? load_to_adapt(options.config, mask_token_of(options), options.seed)
                               : load_to_finetune(options.config, lora, options.seed);
  run.config = finetune_config(model->config(), lora.has_value(), parse_settings(options.settings),
                               options.config.string());
  run.score_start = true;
  run.base = options.config.string();
  source = read_texts(options, corpus_with(options, options.config), data, run);
  const int64_t tokens = data.corpus.tokenizer->vocab_size();
  require(tokens <= model->config().vocab_size, options.config.string(),
          "its tokenizer has {} tokens and its model {}", tokens, model->config().vocab_size);
  model->set_train_settings(write_train_config(run.config));
  return model;
}

void train_command(const TrainOptions& options) {
  TrainRun run;
  run.budget = options.budget.budget();
  run.seed = options.seed;
  run.directory = options.directory;
  run.resume = options.resume;
  run.evaluate_every = options.evaluate_every;
  run.checkpoint_seconds = parse_seconds(options.checkpoint_every, "--checkpoint-every");

  const bool trained = is_checkpoint(options.config);
  ModelConfig config;
  if (!trained) config = read_config(options, run);
  check_usage(options, trained);
  const DirectoryLock lock(options.directory);
  if (!options.resume && holds_training_run(options.directory)) {
    throw Error(options.directory.string(), "already holds a training run",
                "continue it with --resume, or choose another --out");
  }

  TextData data;
  std::unique_ptr<DataSource> source;
  const std::unique_ptr<Model> made =
      trained ? trained_model(options, run, data, source)
              : new_model(options, std::move(config), run, data, source);
  Model& model = *made;
  spdlog::info("{} parameters, {} tokens a step",
               format_count(static_cast<double>(model.parameter_count())), run.config.batch_tokens);
  const TrainResult result =
      train(model, *source, data.held_out.get(), data.corpus.tokenizer.get(), run);
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
    if (result.start_bits_per_byte) {
      json["start_held_out_bits_per_byte"] = *result.start_bits_per_byte;
    }
    if (result.held_out_bits_per_byte) {
      json["held_out_bits_per_byte"] = *result.held_out_bits_per_byte;
      json["best_held_out_bits_per_byte"] = *result.best_bits_per_byte;
      json["bits_are_bound"] = result.is_bound;
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
  const char* const most = result.is_bound ? "at most " : "";
  if (result.start_bits_per_byte) {
    fmt::print("before      {}{:.4f} bits/byte\n", most, *result.start_bits_per_byte);
  }
  if (result.held_out_bits_per_byte) {
    fmt::print("held out    {}{:.4f} bits/byte (best {:.4f})\n", most,
               *result.held_out_bits_per_byte, *result.best_bits_per_byte);
  }
  if (result.accuracy) fmt::print("accuracy    {:.2f}%\n", 100 * *result.accuracy);
  fmt::print("model       {}\n", options.directory.string());
}

}  // namespace

void add_train(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("train", "Train a model on texts: a new one, or one that goes on");
  auto options = std::make_shared<TrainOptions>();
  command
      ->add_option("config", options->config,
                   "configuration file, for a new model; or a checkpoint, whose weights and "
                   "tokenizer are the start")
      ->required();
  command->add_option("--data", options->data, "text files or folders (.txt, .jsonl, .gz)");
  command->add_option("--out", options->directory, "directory for the model and its state")
      ->required();
  add_budget_options(*command, options->budget, true);
  command->add_flag("--resume", options->resume, "continue the run in --out, to the same bits");
  command
      ->add_option("--lora", options->lora.rank,
                   "train an adapter of this rank in place of the checkpoint's weights")
      ->check(positive_integer());
  command->add_option(
      "--lora-alpha", options->lora.alpha,
      "its products are multiplied by this over the rank (default: twice the rank)");
  command
      ->add_option("--lora-targets", options->lora.targets,
                   "matrices that it changes: q_proj,v_proj (default: all of the blocks)")
      ->delimiter(',');
  command->add_flag("--masked-diffusion", options->masked_diffusion,
                    "let the checkpoint learn to fill in masked tokens, seeing both ways");
  command
      ->add_option("--mask-token", options->mask_token,
                   "token that masks then (default: the first beyond the tokenizer's)")
      ->check(natural_number());
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
