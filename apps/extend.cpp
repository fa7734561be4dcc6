// pronghorn extend: a trained model learns to read longer texts.
#include "model/extend.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "base/directory_lock.h"
#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "train/corpus.h"
#include "train/evaluate.h"
#include "train/finetune.h"
#include "train/trainer.h"

namespace pronghorn::app {
namespace {

// Held-out tokens that are read in whole contexts.
constexpr int64_t kScoredTokens = int64_t{1} << 17;

struct ExtendCommand : LearningOptions {
  ExtendOptions extend;
};

// Bits per byte of held-out text that is read in contexts of the new length.
struct LongScores {
  int64_t context = 0;
  double before = 0, scaled = 0, after = 0;
};

std::unique_ptr<Model> load_extended(const ExtendCommand& options, const ModelConfig& config) {
  auto model = std::make_unique<Model>(config, options.seed);
  model->load_weights(options.model);
  return model;
}

void print(const ExtendCommand& options, int64_t original, const LongScores& scores,
           const TrainResult& result) {
  if (options.json) {
    return print_json({{"context", options.extend.context},
                       {"original_context", original},
                       {"scaling", options.extend.scaling},
                       {"scored_context", scores.context},
                       {"before_bits_per_byte", scores.before},
                       {"scaled_bits_per_byte", scores.scaled},
                       {"bits_per_byte", scores.after},
                       {"held_out_bits_per_byte", result.held_out_bits_per_byte.value_or(0)},
                       {"steps", result.steps},
                       {"tokens", result.tokens},
                       {"seconds", result.seconds},
                       {"directory", options.directory.string()}});
  }
  fmt::print("context     {} tokens, by {} from {}\n", options.extend.context,
             options.extend.scaling, original);
  fmt::print("texts of {} tokens\n", scores.context);
  fmt::print("  before    {:.4f} bits/byte\n", scores.before);
  fmt::print("  scaled    {:.4f} bits/byte\n", scores.scaled);
  fmt::print("  trained   {:.4f} bits/byte after {} steps\n", scores.after, result.steps);
  fmt::print("model       {}\n", options.directory.string());
}

void extend_command(const ExtendCommand& options) {
  const ModelConfig config = config_to_remake(options.model, "learn to read longer texts");
  TrainRun run = options.run("extend");
  const DirectoryLock lock(options.directory);
  check_directory(options.directory, false);

  ModelConfig extended = extended_config(config, options.extend);
  const int64_t original = extended.context.original;
  nlohmann::json changes = parse_settings(options.settings);
  if (!changes.contains("position")) changes["position"] = {{"skip", options.extend.context}};
  run.config = finetune_config(config, false, changes, options.model.string());
  extended.train = write_train_config(run.config);
  const Corpus corpus = prepare_corpus_with(load_tokenizer(options.model), options.data,
                                            options.directory / "data", options.held_out);
  require(corpus.tokenizer->vocab_size() <= config.vocab_size, options.model.string(),
          "its tokenizer has {} tokens and its model {}", corpus.tokenizer->vocab_size(),
          config.vocab_size);
  const TokenShard shard(corpus.files.train), held_out(corpus.files.held_out);
  TextSource source(shard, run.config.window, options.seed);
  run.data_identity = corpus.identity();

  LongScores scores;
  scores.context = std::min({options.extend.context, held_out.size() - 1, kMaxWindow});
  const auto score = [&](const Model& model) {
    return evaluate_text(model, run.config.precision, held_out, scores.context, kScoredTokens)
        .bits_per_byte();
  };
  scores.before = score(*load_to_finetune(options.model, {}, options.seed));
  const std::unique_ptr<Model> model = load_extended(options, extended);
  scores.scaled = score(*model);
  const TrainResult result = train(*model, source, &held_out, corpus.tokenizer.get(), run);
  require_finished(result, options.directory);
  scores.after = score(*model);
  print(options, original, scores, result);
}

}  // namespace

void add_extend(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("extend", "Let a trained model learn to read longer texts");
  auto options = std::make_shared<ExtendCommand>();
  command->add_option("model", options->model, "a checkpoint with rotary positions")->required();
  command->add_option("--context", options->extend.context, "tokens that it is to read")
      ->required()
      ->transform(positive_integer());
  command
      ->add_option("--original", options->extend.original,
                   "tokens that it was trained for (default: what its files say)")
      ->transform(positive_integer());
  command
      ->add_option("--scaling", options->extend.scaling,
                   "of the rotary positions: yarn (default), linear or ntk")
      ->check(CLI::IsMember({"yarn", "linear", "ntk"}));
  add_learning_options(*command, *options, "positions");
  command->callback([options] { extend_command(*options); });
}

}  // namespace pronghorn::app
