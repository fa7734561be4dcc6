#include <algorithm>
#include <memory>

#include "api/parts.h"
#include "base/directory_lock.h"
#include "base/error.h"
#include "formats/json.h"
#include "lab/compare.h"
#include "train/corpus.h"
#include "train/finetune.h"
#include "train/trainer.h"

namespace pronghorn {

namespace {

// Keys of a "train" object, from the text of one; empty: none.
nlohmann::json settings_of(const std::string& text) {
  if (text.empty()) return nlohmann::json::object();
  nlohmann::json settings = parse_json(text, "settings");
  require(settings.is_object(), "settings", "must be a JSON object");
  return settings;
}

}  // namespace

TrainingResult train(const TrainingOptions& options, const TrainingCallback& on_step) {
  set_up_messages();
  const nlohmann::json changes = settings_of(options.settings);
  TrainRun run;
  if (options.seconds > 0) run.budget.seconds = options.seconds;
  if (options.tokens > 0) run.budget.tokens = options.tokens;
  if (options.steps > 0) run.budget.steps = options.steps;
  run.seed = options.seed;
  run.directory = options.directory;
  run.resume = options.resume;
  if (on_step) {
    run.on_step = [&](const TrainLogLine& line) {
      return on_step({line.step, line.tokens, line.seconds, line.loss, line.learning_rate,
                      line.held_out_bits_per_byte.value_or(0)});
    };
  }

  const DirectoryLock lock(options.directory);
  check_directory(options.directory, options.resume);
  const std::filesystem::path data = options.directory / "data";
  const bool trained = is_checkpoint(options.config);
  require(!trained || options.vocab_size == 0, "vocab_size",
          "{} for a model that has its tokenizer", options.vocab_size);
  const Corpus corpus =
      trained ? prepare_corpus_with(load_tokenizer(options.config), options.data, data,
                                    options.held_out)
              : prepare_corpus(options.data, options.vocab_size, data, options.held_out);
  std::unique_ptr<Model> model;
  if (trained) {
    model = load_to_finetune(options.config, {}, options.seed);
    run.config = finetune_config(model->config(), false, changes, options.config.string());
    model->set_train_settings(write_train_config(run.config));
  } else {
    ModelConfig config = load_config(options.config);
    nlohmann::json settings = config.train.is_null() ? nlohmann::json::object() : config.train;
    settings.update(changes);
    run.config = read_train_config(ConfigReader(settings, options.config.string() + ": train"));
    set_vocabulary(config, corpus.tokenizer->vocab_size());
    config.train = write_train_config(run.config);
    model = std::make_unique<Model>(config, options.seed);
  }
  const TokenShard shard(corpus.files.train), held_out(corpus.files.held_out);
  TextSource source(shard, run.config.window, options.seed);
  run.data_identity = corpus.identity();
  const TrainResult result =
      pronghorn::train(*model, source, &held_out, corpus.tokenizer.get(), run);
  return {result.steps,
          result.tokens,
          result.seconds,
          result.tokens_per_second,
          result.held_out_bits_per_byte.value_or(0),
          result.interrupted};
}

std::string compare(const ComparisonOptions& options) {
  set_up_messages();
  require((options.seconds > 0) != (options.tokens > 0), "compare",
          "exactly one of seconds and tokens must be given");
  lab::CompareOptions internal;
  internal.configs = options.configs;
  internal.data = options.data;
  internal.directory = options.directory;
  if (options.seconds > 0) internal.budget.seconds = options.seconds;
  if (options.tokens > 0) internal.budget.tokens = options.tokens;
  internal.vocab_size = options.vocab_size;
  internal.contexts = options.contexts;
  std::sort(internal.contexts.begin(), internal.contexts.end());
  internal.context_seconds = options.context_seconds;
  internal.train_overrides = settings_of(options.settings);
  internal.seed = options.seed;
  internal.seeds = options.seeds;
  return lab::run_text(lab::compare(internal));
}

}  // namespace pronghorn
