// pronghorn inspect: what a model or configuration is made of and what it will cost.
#include <memory>

#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "formats/tokenizer.h"
#include "lab/text.h"
#include "model/families.h"
#include "model/model.h"

namespace pronghorn::app {
namespace {

struct InspectOptions : Common {
  std::filesystem::path model;
  std::vector<int64_t> contexts = {512, 4096, 32768, 262144};
};

// "mamba2: heads 2, state 8": a layer's settings, its type first.
std::string layer_text(const nlohmann::json& layer) {
  std::vector<std::string> settings;
  for (const auto& [key, value] : layer.items()) {
    if (key != "type") settings.push_back(fmt::format("{} {}", key, value.dump()));
  }
  return fmt::format("{}: {}", layer.at("type").get<std::string>(), fmt::join(settings, ", "));
}

void inspect(const InspectOptions& options) {
  ModelConfig config = load_config(options.model);
  if (config.vocab_size == 0) config.vocab_size = 256;
  const Model model(config, 0);
  const int64_t parameters = model.parameter_count();

  nlohmann::json json = {{"config", write_pronghorn_config(config)},
                         {"family", family_for(config).model_type},
                         {"pattern", expanded_pattern(config.steps)},
                         {"parameters", parameters},
                         {"non_embedding_parameters", model.non_embedding_parameter_count()},
                         {"bytes_f32", parameters * 4},
                         {"contexts", nlohmann::json::array()}};
  lab::Table contexts({{"context"},
                       {"forward FLOPs/token"},
                       {"training FLOPs/token"},
                       {"state"},
                       {"bytes read/token"}});
  for (const int64_t context : options.contexts) {
    const TokenCost cost = model.cost(static_cast<double>(context));
    const double forward = cost.matmul + cost.sequence;
    const int64_t state = model.predicted_state_bytes(context);
    // Decoding reads every weight once (the embedding table only as the head) and the state.
    const double read = static_cast<double>(parameters * 4 + state);
    contexts.add_row({lab::format_context(context), format_count(forward),
                      format_count(3 * forward), format_bytes(static_cast<double>(state)),
                      format_bytes(read)});
    json["contexts"].push_back({{"context", context},
                                {"forward_flops_per_token", forward},
                                {"training_flops_per_token", 3 * forward},
                                {"state_bytes", state},
                                {"bytes_read_per_token", read}});
  }
  if (options.json) return print_json(json);

  fmt::print("pattern     {}   ({} blocks)\n", config.pattern, config.block_count());
  for (const auto& [name, block] : config.blocks) {
    for (const nlohmann::json& mixer : block.mixers)
      fmt::print("block {}     {}\n", name, layer_text(mixer));
    if (!block.feed_forward.is_null())
      fmt::print("            {}\n", layer_text(block.feed_forward));
  }
  fmt::print("width       {}   vocabulary {}{}\n", config.hidden_size, config.vocab_size,
             config.tie_embeddings ? ", tied head" : "");
  fmt::print("parameters  {}   ({} without embeddings, {} in f32)\n",
             format_count(static_cast<double>(parameters)),
             format_count(static_cast<double>(model.non_embedding_parameter_count())),
             format_bytes(static_cast<double>(parameters) * 4));
  fmt::print("written as  {}\n\n", family_for(config).model_type);
  print_table(contexts);
}

}  // namespace

void add_inspect(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "inspect", "Blocks, parameters, bytes, FLOPs a token, state bytes at chosen contexts");
  auto options = std::make_shared<InspectOptions>();
  command->add_option("model", options->model, "checkpoint directory or configuration file")
      ->required();
  command->add_option("--contexts", options->contexts, "contexts to look at")
      ->delimiter(',')
      ->check(positive_integer());
  add_common_options(*command, *options);
  command->callback([options] { inspect(*options); });
}

}  // namespace pronghorn::app
