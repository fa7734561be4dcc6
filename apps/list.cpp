// pronghorn list: the architectures that this engine knows.
#include <memory>

#include "base/log.h"
#include "command.h"
#include "layers/fields.h"
#include "layers/layer.h"
#include "model/families.h"
#include "train/tasks.h"

namespace pronghorn::app {
namespace {

// Growth of the state, seen on a layer of a typical size: bytes per token where rows are never
// folded, bytes per sequence otherwise.
struct StateSize {
  double per_token = 0, per_sequence = 0;
};

// Sizes that all can be compared at: 8 heads, and what follows from the width. Those of the
// examples are for tests.
nlohmann::json comparable_config(const MixerType& type) {
  constexpr int64_t kHeads = 8;
  const nlohmann::json example = parse_json(type.example, type.name);
  nlohmann::json config = nlohmann::json::object();
  for (const auto& [key, value] : example.items()) {
    if (!value.is_number() && !value.is_array()) config[key] = value;
  }
  for (const FieldDescription& field : describe(type)) {
    const auto given = example.find(field.name);
    if (field.fallback != "required" || given == example.end()) continue;
    config[field.name] = given->is_number() ? nlohmann::json(kHeads) : *given;
  }
  return config;
}

StateSize state_size(const MixerType& type) {
  LayerContext context;
  context.hidden_size = 512;
  ParameterStore store(0, false);
  const nlohmann::json complete =
      type.complete(ConfigReader(comparable_config(type), "list"), context);
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
    if (shape.blocks.length > 0) {  // which stay, even if the rows that they stand for are dropped
      size.per_token += static_cast<double>(shape.blocks.width) * sizeof(float) /
                        static_cast<double>(shape.blocks.stride);
    }
  }
  return size;
}

nlohmann::json to_json(const std::vector<FieldDescription>& fields) {
  nlohmann::json list = nlohmann::json::array();
  for (const FieldDescription& field : fields) {
    list.push_back({{"key", field.name}, {"default", field.fallback}, {"meaning", field.meaning}});
  }
  return list;
}

// The settings of one layer.
void list_settings(const std::string& name, bool json) {
  const auto show = [&](const auto& type) {
    if (json) {
      return print_json({{"name", type.name},
                         {"description", type.description},
                         {"paper", type.paper},
                         {"settings", to_json(describe(type))}});
    }
    lab::Table table({{"key", lab::Align::kLeft},
                      {"default", lab::Align::kLeft},
                      {"meaning", lab::Align::kLeft}});
    for (const FieldDescription& field : describe(type)) {
      table.add_row({field.name, field.fallback, field.meaning});
    }
    fmt::print("{}: {} ({})\n\n", type.name, type.description, type.paper);
    print_table(table);
  };
  for (const FeedForwardType& type : feed_forward_types()) {
    if (type.name == name) return show(type);
  }
  show(find_mixer_type(name, "list"));
}

}  // namespace

void add_list(CLI::App& app) {
  CLI::App* command = app.add_subcommand("list", "The zoo: each architecture and what it keeps");
  auto common = std::make_shared<Common>();
  auto layer = std::make_shared<std::string>();
  add_common_options(*command, *common);
  command->add_option("layer", *layer, "show the settings of this mixer or feed-forward");
  command->callback([common, layer] {
    if (!layer->empty()) return list_settings(*layer, common->json);
    nlohmann::json json = {{"mixers", nlohmann::json::array()},
                           {"families", nlohmann::json::array()},
                           {"tasks", nlohmann::json::array()}};
    lab::Table table({{"mixer", lab::Align::kLeft},
                      {"kind", lab::Align::kLeft},
                      {"state at width 512", lab::Align::kLeft},
                      {"paper", lab::Align::kLeft},
                      {"what it is", lab::Align::kLeft}});
    for (const MixerType& type : mixer_types()) {
      const StateSize size = state_size(type);
      table.add_row({type.name, type.kind,
                     size.per_token > 0 ? format_bytes(size.per_token) + " per token"
                                        : format_bytes(size.per_sequence) + " per sequence",
                     type.paper, type.description});
      json["mixers"].push_back({{"name", type.name},
                                {"kind", type.kind},
                                {"description", type.description},
                                {"paper", type.paper},
                                {"state_bytes_per_token", size.per_token},
                                {"state_bytes_per_sequence", size.per_sequence},
                                {"settings", to_json(describe(type))},
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
    std::vector<std::string> feed_forwards;
    for (const FeedForwardType& type : feed_forward_types()) feed_forwards.push_back(type.name);
    json["feed_forwards"] = feed_forwards;
    if (common->json) return print_json(json);
    print_table(table);
    fmt::print("\n");
    print_table(tasks);
    fmt::print(
        "\nFeed-forwards: {}\nCheckpoint families: {}\nEvery mixer trains, takes prompts, decodes "
        "and batches; "
        "blocks of several mixers and patterns of blocks make hybrids, parentheses in a pattern "
        "spans that run on a part of the tokens (SUBLLM, arXiv 2406.06571; mixture of depths, "
        "arXiv "
        "2404.02258).\n",
        fmt::join(feed_forwards, ", "), fmt::join(names, ", "));
  });
}

}  // namespace pronghorn::app
