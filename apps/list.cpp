// pronghorn list: the architectures that this engine knows.
#include <memory>

#include "base/log.h"
#include "command.h"
#include "layers/layer.h"
#include "model/families.h"
#include "train/tasks.h"

namespace pronghorn::app {
namespace {

// Growth of the state, seen on a layer of a typical size: bytes a token where rows are never
// folded, bytes a sequence otherwise.
struct StateSize {
  double per_token = 0, per_sequence = 0;
};

StateSize state_size(const MixerType& type) {
  LayerContext context;
  context.hidden_size = 512;
  ParameterStore store(0, false);
  nlohmann::json config = {{"type", type.name}};
  if (type.name != "mamba") config["heads"] = 8;
  const nlohmann::json complete = type.complete(ConfigReader(config, "list"), context);
  std::vector<JournalShape> journals;
  type.create(complete, context, ParameterScope(store, "list"), StateScope(0, journals));
  StateSize size;
  for (const JournalShape& shape : journals) {
    const auto row = static_cast<double>(shape.row_bytes());
    if (shape.fold_interval == 0) {
      size.per_token += row;
    } else {
      size.per_sequence += static_cast<double>(shape.anchor_size) * sizeof(float) +
                           row * static_cast<double>(shape.history + shape.fold_interval);
    }
  }
  return size;
}

}  // namespace

void add_list(CLI::App& app) {
  CLI::App* command = app.add_subcommand("list", "The zoo: each architecture and what it keeps");
  auto common = std::make_shared<Common>();
  add_common_options(*command, *common);
  command->callback([common] {
    nlohmann::json json = {{"mixers", nlohmann::json::array()},
                           {"families", nlohmann::json::array()},
                           {"tasks", nlohmann::json::array()}};
    lab::Table table({{"mixer", lab::Align::kLeft},
                      {"state at width 512", lab::Align::kLeft},
                      {"paper", lab::Align::kLeft},
                      {"what it is", lab::Align::kLeft}});
    for (const MixerType& type : mixer_types()) {
      const StateSize size = state_size(type);
      table.add_row({type.name,
                     size.per_token > 0 ? format_bytes(size.per_token) + " a token"
                                        : format_bytes(size.per_sequence) + " a sequence",
                     type.paper, type.description});
      json["mixers"].push_back({{"name", type.name},
                                {"description", type.description},
                                {"paper", type.paper},
                                {"state_bytes_per_token", size.per_token},
                                {"state_bytes_per_sequence", size.per_sequence},
                                {"can", {"train", "generate", "eval", "compare", "bench"}}});
    }
    lab::Table tasks({{"task", lab::Align::kLeft},
                      {"paper", lab::Align::kLeft},
                      {"what it asks", lab::Align::kLeft}});
    for (const TaskType& task : task_types()) {
      tasks.add_row({task.name, task.source, task.description});
      json["tasks"].push_back(
          {{"name", task.name}, {"description", task.description}, {"paper", task.source}});
    }
    std::vector<std::string> names;
    for (const Family& family : families()) names.push_back(family.model_type);
    json["families"] = names;
    if (common->json) return print_json(json);
    print_table(table);
    fmt::print("\n");
    print_table(tasks);
    fmt::print(
        "\nCheckpoint families: {}\nEvery mixer trains, takes prompts, decodes and batches; "
        "blocks of several mixers and patterns of blocks make hybrids, parentheses in a pattern "
        "spans that run on a part of the tokens (SUBLLM, arXiv 2406.06571).\n",
        fmt::join(names, ", "));
  });
}

}  // namespace pronghorn::app
