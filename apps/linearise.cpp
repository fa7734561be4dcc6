// pronghorn linearise: layers of a transformer's attention become layers with a state.
#include "model/linearise.h"

#include <memory>

#include "base/directory_lock.h"
#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "formats/json.h"
#include "train/attention_transfer.h"
#include "train/corpus.h"
#include "train/finetune.h"
#include "train/trainer.h"

namespace pronghorn::app {
namespace {

// Attention's softmax weights are positive and add up to 1: so do these.
constexpr const char* kDefaultMixer =
    R"({"type": "linear_attention", "feature_map": "exp", "normalizer": true,
        "output_norm": "identity"})";

struct LineariseCommand : LearningOptions {
  std::string pattern, mixer = kDefaultMixer;
  int64_t transfer_steps = 200;
  double transfer_rate = 1e-3;
};

// "gla", or an object with settings.
nlohmann::json mixer_of(const std::string& text) {
  if (text.find('{') == std::string::npos) return {{"type", text}};
  return parse_json(text, "--mixer");
}

// The losses of the last step; empty without steps.
std::vector<double> transfer(const LineariseCommand& options, const Model& teacher,
                             const Linearised& linear, DataSource& source, TrainConfig config) {
  config.learning_rate = options.transfer_rate;
  Progress progress("transfer", static_cast<double>(options.transfer_steps), "steps");
  AttentionTransfer transfer{
      .config = config, .steps = options.transfer_steps, .layers = linear.layers};
  transfer.on_step = [&](int64_t step, double loss) {
    progress.update(static_cast<double>(step), fmt::format("loss {:.4f}", loss));
  };
  return transfer_attention(teacher, *linear.model, source, transfer);
}

void print(const LineariseCommand& options, const Linearised& linear,
           const std::vector<double>& losses, const TrainResult& result) {
  if (options.json) {
    return print_json({{"layers", linear.layers},
                       {"tensors_taken", linear.taken},
                       {"tensors_fresh", linear.fresh},
                       {"transfer_losses", losses},
                       {"steps", result.steps},
                       {"tokens", result.tokens},
                       {"seconds", result.seconds},
                       {"start_held_out_bits_per_byte", result.start_bits_per_byte.value_or(0)},
                       {"held_out_bits_per_byte", result.held_out_bits_per_byte.value_or(0)},
                       {"directory", options.directory.string()}});
  }
  fmt::print("layers      {} of {}, {} tensors taken over, {} new\n", linear.layers.size(),
             linear.model->config().block_count(), linear.taken, linear.fresh);
  for (size_t i = 0; i < losses.size(); ++i) {
    fmt::print("layer {:<5} misses {:.2f}% of what attention gave\n", linear.layers[i],
               100 * losses[i]);
  }
  fmt::print("before      {:.4f} bits/byte\n", result.start_bits_per_byte.value_or(0));
  fmt::print("held out    {:.4f} bits/byte after {} steps\n",
             result.held_out_bits_per_byte.value_or(0), result.steps);
  fmt::print("model       {}\n", options.directory.string());
}

void linearise_command(const LineariseCommand& options) {
  TrainRun run = options.run("tune");
  run.score_start = true;
  const DirectoryLock lock(options.directory);
  check_directory(options.directory, false);

  std::unique_ptr<Model> teacher = load_to_finetune(options.model, {}, options.seed);
  run.config = finetune_config(teacher->config(), false, parse_settings(options.settings),
                               options.model.string());
  const Linearised linear =
      linearise(*teacher, {options.pattern, mixer_of(options.mixer), options.seed});
  linear.model->set_train_settings(write_train_config(run.config));
  const Corpus corpus = prepare_corpus_with(load_tokenizer(options.model), options.data,
                                            options.directory / "data", options.held_out);
  require(corpus.tokenizer->vocab_size() <= teacher->config().vocab_size, options.model.string(),
          "its tokenizer has {} tokens and its model {}", corpus.tokenizer->vocab_size(),
          teacher->config().vocab_size);
  const TokenShard shard(corpus.files.train), held_out(corpus.files.held_out);
  TextSource source(shard, run.config.window, options.seed);
  run.data_identity = corpus.identity();

  const std::vector<double> losses = transfer(options, *teacher, linear, source, run.config);
  teacher.reset();  // tuning needs the memory
  const TrainResult result = train(*linear.model, source, &held_out, corpus.tokenizer.get(), run);
  require_finished(result, options.directory);
  print(options, linear, losses, result);
}

}  // namespace

void add_linearise(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "linearise", "Turn layers of a trained model's attention into layers with a state");
  auto options = std::make_shared<LineariseCommand>();
  command->add_option("model", options->model, "a checkpoint of a transformer")->required();
  command
      ->add_option("--pattern", options->pattern,
                   "all of its layers: l becomes linear, a stays attention (\"2[3l a]\")")
      ->required();
  command->add_option("--mixer", options->mixer,
                      "of the linear layers: its type, or an object with settings (default: linear "
                      "attention with exponential features and a normaliser)");
  command
      ->add_option("--transfer-steps", options->transfer_steps,
                   "steps in which each new layer learns to imitate attention (200)")
      ->transform(natural_number());
  command->add_option("--transfer-rate", options->transfer_rate, "learning rate of these (0.001)")
      ->check(number_in_range(0, 10));
  add_learning_options(*command, *options, "new weights");
  command->callback([options] { linearise_command(*options); });
}

}  // namespace pronghorn::app
