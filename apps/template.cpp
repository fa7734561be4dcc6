// pronghorn template: what a model reads of a conversation.
#include <memory>

#include "base/error.h"
#include "command.h"
#include "formats/chat_format.h"
#include "output.h"

namespace pronghorn::app {
namespace {

struct TemplateCommand : Common {
  std::filesystem::path model, variables;
  int64_t now = -1;
};

// Of each conversation of a list its text, or why there is none.
nlohmann::json render_all(const ChatFormat& format, const nlohmann::ordered_json& list,
                          std::optional<std::time_t> now) {
  nlohmann::json results = nlohmann::json::array();
  for (const nlohmann::ordered_json& variables : list) {
    try {
      results.push_back({{"text", format.render(variables, now)}});
    } catch (const JinjaError& error) {
      results.push_back(
          {{"error", error.message()}, {"line", error.line()}, {"refused", error.raised()}});
    }
  }
  return results;
}

void run(const TemplateCommand& options) {
  const ChatFormat format = ChatFormat::load(options.model);
  const nlohmann::ordered_json variables =
      parse_variables(read_input(options.variables), options.variables.string());
  const auto now = options.now < 0 ? std::nullopt : std::optional<std::time_t>(options.now);
  if (variables.is_array()) {
    if (!options.json) throw UsageError("--variables", "holds a list", "add --json");
    return print_json(render_all(format, variables, now));
  }
  const std::string text = format.render(variables, now);
  if (options.json) return print_json({{"text", text}});
  write_output(text);
}

}  // namespace

void add_template(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("template", "Render a conversation with a model's chat template");
  auto options = std::make_shared<TemplateCommand>();
  command->add_option("model", options->model, "checkpoint directory, .gguf or .jinja file")
      ->required();
  command
      ->add_option("--variables", options->variables,
                   "JSON file (- for standard input) with the variables of the template, such as "
                   "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}], "
                   "\"add_generation_prompt\": true}; with --json also a list of such objects")
      ->required();
  command
      ->add_option("--now", options->now,
                   "the time that the template is told, in seconds since 1970 (default: now)")
      ->transform(natural_number());
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
