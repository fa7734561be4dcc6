// pronghorn compare: which architecture wins at what, on your text and machine.
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "base/error.h"
#include "base/log.h"
#include "base/ranks.h"
#include "base/terminal.h"
#include "command.h"
#include "lab/results.h"
#include "lab/table.h"
#include "lab/text.h"
#include "server_run.h"
#include "train/sound.h"
#include "train/tasks.h"

namespace pronghorn::app {
namespace {

struct CompareCommand : Common {
  ComparisonOptions compare;
  BudgetOptions budget;
  std::string mqar, context_time = "60s";
  std::vector<std::string> settings;
  bool watch = false;
  int watch_port = 8090;
};

void run(CompareCommand& options) {
  const TrainBudget budget = options.budget.budget();
  options.compare.seconds = budget.seconds.value_or(0);
  options.compare.tokens = budget.tokens.value_or(0);
  options.compare.settings = parse_settings(options.settings).dump();
  options.compare.context_seconds = parse_seconds(options.context_time, "--context-time");
  if (!options.mqar.empty()) options.compare.mqar_seconds = parse_seconds(options.mqar, "--mqar");
  const std::string& task = options.compare.task.name;
  if (is_folder_task(task)) {
    if (options.compare.data.size() != 1) {
      throw UsageError("--data", "must be one folder",
                       fmt::format("with {} in it", folder_of_task(task)));
    }
  } else if (options.compare.data.empty() && (task.empty() || task_type(task).text)) {
    throw UsageError("--data", "missing");
  }
  if (!task.empty() && !options.mqar.empty()) throw UsageError("--mqar", "given with --task");
  std::optional<RunsServer> watched;
  if (options.watch && launch_of_mpirun().rank == 0) {
    serve::ServerOptions server;
    server.port = options.watch_port;
    server.runs = {options.compare.directory};
    watched.emplace(server);
  }
  const std::string text = pronghorn::compare(options.compare);
  if (text.empty()) return;  // the first process prints
  const lab::CompareRun result = lab::parse_run(text, "results");
  if (options.json) {
    fmt::print("{}\n", text);
  } else {
    fmt::print("{}", lab::compare_table(result, terminal_shows_styles(STDOUT_FILENO)));
    for (const lab::ArchitectureResult& architecture : result.architectures) {
      if (architecture.sample.empty()) continue;
      std::string sample = architecture.sample;
      std::replace(sample.begin(), sample.end(), '\n', ' ');
      fmt::print("\n{}:\n  {}\n", architecture.name, lab::one_line(sample));
    }
    fmt::print("\nReport: {}\n", (options.compare.directory / "report.html").string());
  }
  for (const lab::ArchitectureResult& architecture : result.architectures) {
    if (!architecture.failure) continue;
    throw Error(architecture.name, *architecture.failure, "the others are in the report");
  }
}

}  // namespace

void add_compare(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("compare", "Train, measure and report several architectures side by side");
  auto options = std::make_shared<CompareCommand>();
  ComparisonOptions& compare = options->compare;
  command->add_option("configs", compare.configs, "configuration files")->required();
  command->add_option("--data", compare.data,
                      "text files or folders; of --task images and sound as in training");
  command->add_option("--out", compare.directory, "directory for models, results and report")
      ->required();
  add_budget_options(*command, options->budget, false);
  command->add_option("--seed", compare.seed, "of weights and of the order of the data")
      ->transform(natural_number());
  command
      ->add_option("--seeds", compare.seeds,
                   "train each with that many seeds, to tell differences from chance (default 1)")
      ->check(CLI::Range(int64_t{1}, int64_t{1000}));
  command
      ->add_option("--vocab", compare.vocab_size,
                   "vocabulary to train on the data (default 4096; 0: bytes)")
      ->transform(natural_number());
  command->add_option("--contexts", compare.contexts, "contexts to measure inference at")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->transform(positive_integer())
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option("--context-time", options->context_time,
                      "leave out contexts that would take longer to read (default 60s)");
  command->add_option("--mqar", options->mqar,
                      "also train each on associative recall for so long, and report accuracy");
  add_task_options(*command, compare.task);
  command
      ->add_option("--task-multiples", compare.task_multiples,
                   "lengths to judge at, as multiples of --task-length (default 1,2,4,8,16)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 1024));
  command
      ->add_option("--task-examples", compare.task_examples,
                   "examples to judge at each length (default 50)")
      ->transform(positive_integer());
  command
      ->add_option("--set", options->settings,
                   "a training setting for all, KEY=VALUE (window, learning_rate, ...)")
      ->allow_extra_args(false);
  command->add_flag("--watch", options->watch,
                    "show the curves on a page of this machine while the runs go on");
  command
      ->add_option("--watch-port", options->watch_port,
                   "port of that page (default 8090; 0: any that is free)")
      ->check(CLI::Range(0, 65535));
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
