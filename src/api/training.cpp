#include <memory>

#include "api/parts.h"
#include "base/directory_lock.h"
#include "base/error.h"
#include "formats/json.h"
#include "train/corpus.h"
#include "train/trainer.h"

namespace pronghorn {

TrainingResult train(const TrainingOptions& options, const TrainingCallback& on_step) {
  set_up_messages();
  ModelConfig config = load_config(options.config);
  nlohmann::json settings = config.train.is_null() ? nlohmann::json::object() : config.train;
  if (!options.settings.empty()) {
    const nlohmann::json changes = parse_json(options.settings, "settings");
    require(changes.is_object(), "settings", "must be a JSON object");
    settings.update(changes);
  }
  TrainRun run;
  run.config = read_train_config(ConfigReader(settings, options.config.string() + ": train"));
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
  const Corpus corpus = prepare_corpus(options.data, options.vocab_size, options.directory / "data",
                                       options.held_out);
  const TokenShard shard(corpus.files.train), held_out(corpus.files.held_out);
  TextSource source(shard, run.config.window, options.seed);
  run.data_identity = corpus.identity();
  config.vocab_size = corpus.tokenizer->vocab_size();
  config.train = write_train_config(run.config);
  Model model(config, options.seed);
  const TrainResult result =
      pronghorn::train(model, source, &held_out, corpus.tokenizer.get(), run);
  return {result.steps,
          result.tokens,
          result.seconds,
          result.tokens_per_second,
          result.held_out_bits_per_byte.value_or(0),
          result.interrupted};
}

}  // namespace pronghorn
