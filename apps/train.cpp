// pronghorn train: a model from a configuration or a checkpoint and texts, or a synthetic task.
#include <memory>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "command.h"

namespace pronghorn::app {
namespace {

struct TrainCommand : Common {
  TrainingOptions train;
  BudgetOptions budget;
  std::string checkpoint_every = "30s";
  std::vector<std::string> settings;
  std::string sequence_parallel;
  int64_t sequence_parallel_ranks = 0;
};

// Trains; what the header calls a field is an option here.
TrainingResult train_by_options(const TrainingOptions& options) {
  constexpr std::pair<std::string_view, std::string_view> kOptions[] = {
      {"adapter", "--lora"},          {"data", "--data"},
      {"mask_token", "--mask-token"}, {"masked_diffusion", "--masked-diffusion"},
      {"mtp_heads", "--mtp"},         {"task", "--task"},
      {"tokenizer", "--tokenizer"},   {"vocab_size", "--vocab"}};
  try {
    return pronghorn::train(options);
  } catch (const UsageError& error) {
    const std::string_view text = error.what();
    const size_t end = text.find(": ");
    for (const auto& [field, option] : kOptions) {
      if (text.substr(0, end) == field) throw UsageError(option, text.substr(end + 2));
    }
    throw;
  }
}

void run(TrainCommand& options) {
  TrainingOptions& train = options.train;
  const TrainBudget budget = options.budget.budget();
  train.seconds = budget.seconds.value_or(0);
  train.tokens = budget.tokens.value_or(0);
  train.steps = budget.steps.value_or(0);
  train.checkpoint_seconds = parse_seconds(options.checkpoint_every, "--checkpoint-every");
  nlohmann::json settings = parse_settings(options.settings);
  if (!options.sequence_parallel.empty()) {
    settings["sequence_parallel"] = options.sequence_parallel;
  }
  if (options.sequence_parallel_ranks > 0) {
    settings["sequence_parallel_ranks"] = options.sequence_parallel_ranks;
  }
  train.settings = settings.dump();
  if (!train.resume && holds_training_run(train.directory)) {
    throw Error(train.directory.string(), "already holds a training run",
                "continue it with --resume, or choose another --out");
  }
  const TrainingResult result = train_by_options(train);
  if (result.rank > 0) return;  // the first process prints
  if (result.stopped) {
    throw Error(train.directory.string(), fmt::format("interrupted at step {}", result.steps),
                "continue with the same command and --resume");
  }
  if (options.json) {
    nlohmann::json json = {{"steps", result.steps},
                           {"tokens", result.tokens},
                           {"seconds", result.seconds},
                           {"tokens_per_second", result.tokens_per_second},
                           {"peak_training_bytes", result.peak_bytes},
                           {"parameters", result.parameters},
                           {"directory", options.train.directory.string()}};
    if (result.start_bits_per_byte > 0) {
      json["start_held_out_bits_per_byte"] = result.start_bits_per_byte;
    }
    if (result.held_out_bits_per_byte > 0) {
      json["held_out_bits_per_byte"] = result.held_out_bits_per_byte;
      json["best_held_out_bits_per_byte"] = result.best_bits_per_byte;
      json["bits_are_bound"] = result.is_bound;
    }
    if (result.accuracy) json["accuracy"] = *result.accuracy;
    return print_json(json);
  }
  fmt::print("trained     {} steps, {} tokens in {} of steps, {} tokens/s on average; {}\n",
             result.steps, format_count(static_cast<double>(result.tokens)),
             format_duration(result.seconds), format_count(result.tokens_per_second),
             result.peak_bytes > 0
                 ? format_bytes(static_cast<double>(result.peak_bytes)) + " of memory"
                 : "all of them before");
  const char* const most = result.is_bound ? "at most " : "";
  if (result.start_bits_per_byte > 0) {
    fmt::print("before      {}{:.4f} bits/byte\n", most, result.start_bits_per_byte);
  }
  if (result.held_out_bits_per_byte > 0) {
    fmt::print("held out    {}{:.4f} bits/byte (best {:.4f})\n", most,
               result.held_out_bits_per_byte, result.best_bits_per_byte);
  }
  if (result.accuracy) fmt::print("accuracy    {:.2f}%\n", 100 * *result.accuracy);
  fmt::print("model       {}\n", options.train.directory.string());
}

}  // namespace

void add_train(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("train", "Train a model on texts: a new one, or one that goes on");
  auto options = std::make_shared<TrainCommand>();
  TrainingOptions& train = options->train;
  command
      ->add_option("config", train.config,
                   "configuration file, for a new model; or a checkpoint, whose weights and "
                   "tokenizer are the start")
      ->required();
  command->add_option("--data", train.data,
                      "text files or folders (.txt, .jsonl, .gz); of --task images a folder with "
                      "train/CLASS/*.png and test/CLASS/*.png; of --task captions one with "
                      "train/captions.tsv and test/captions.tsv; of --task sound one with "
                      "train/labels.tsv and test/labels.tsv and the WAV files they list");
  command->add_option("--out", train.directory, "directory for the model and its state")
      ->required();
  add_budget_options(*command, options->budget, true);
  command->add_flag("--resume", train.resume, "continue the run in --out, to the same bits");
  command
      ->add_option("--lora", train.adapter.rank,
                   "train an adapter of this rank in place of the checkpoint's weights")
      ->transform(positive_integer());
  command->add_option(
      "--lora-alpha", train.adapter.alpha,
      "its products are multiplied by this over the rank (default: twice the rank)");
  command
      ->add_option("--lora-targets", train.adapter.targets,
                   "matrices that it changes: q_proj,v_proj (default: all of the blocks)")
      ->delimiter(',');
  command->add_flag("--masked-diffusion", train.masked_diffusion,
                    "let the checkpoint learn to fill in masked tokens, seeing both ways");
  command
      ->add_option("--mask-token", train.mask_token,
                   "token that masks then (default: the first beyond the tokenizer's)")
      ->transform(natural_number());
  command->add_option("--seed", train.seed, "of weights and of the order of the data")
      ->transform(natural_number());
  command
      ->add_option("--vocab", train.vocab_size,
                   "train a SentencePiece BPE of this size on the data (default: bytes)")
      ->transform(natural_number());
  command->add_option("--tokenizer", train.tokenizer,
                      "use the tokenizer of this model instead (drafts need the same one)");
  command
      ->add_option("--mtp", train.mtp_heads,
                   "train that many heads for multi-token prediction along with the model")
      ->check(CLI::Range(0, 15));
  command->add_option("--held-out", train.held_out, "share of the text held out")
      ->check(CLI::Range(0.0, 0.5));
  command->add_option("--eval-every", train.evaluate_every, "steps between held-out scores")
      ->transform(positive_integer());
  command->add_option("--checkpoint-every", options->checkpoint_every,
                      "time between saved states (default 30s)");
  add_task_options(*command, train.task);
  add_sequence_parallel_option(*command, options->sequence_parallel);
  command
      ->add_option("--sequence-parallel-ranks", options->sequence_parallel_ranks,
                   "so many processes share a sequence, and groups of as many make different ones "
                   "(default: all share each)")
      ->needs("--sequence-parallel")
      ->transform(positive_integer());
  command
      ->add_option("--set", options->settings,
                   "a training setting, KEY=VALUE (window, batch_tokens, learning_rate, ...)")
      ->allow_extra_args(false);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
