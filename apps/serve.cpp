// pronghorn serve: models behind HTTP.
#include <memory>

#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "server_run.h"

namespace pronghorn::app {
namespace {

struct ServeCommand : Common {
  std::vector<std::filesystem::path> models;
  std::vector<std::string> names;
  std::filesystem::path adapter;
  std::optional<Precision> precision;
  EngineOptions engine;
  serve::ServerOptions server;
  bool on_demand = false;
};

// "smollm2" of "runs/smollm2/", "m20" of "m20.gguf".
std::string name_of_model(const std::filesystem::path& path) {
  const std::filesystem::path plain =
      path.has_filename() ? path.lexically_normal() : path.lexically_normal().parent_path();
  const std::string extension = plain.extension().string();
  const std::string name = (extension == ".gguf" ? plain.stem() : plain.filename()).string();
  if (!name.empty() && name != "." && name != "..") return name;
  return std::filesystem::absolute(path).lexically_normal().parent_path().filename().string();
}

std::vector<serve::ModelSource> sources_of(const ServeCommand& options) {
  if (options.names.size() > options.models.size()) {
    throw UsageError("--alias", fmt::format("{} names for {} models", options.names.size(),
                                            options.models.size()));
  }
  std::vector<serve::ModelSource> sources;
  for (size_t i = 0; i < options.models.size(); ++i) {
    const std::filesystem::path& path = options.models[i];
    if (!std::filesystem::exists(path)) {
      throw UsageError(path.string(), "there is no such model");
    }
    const std::string name = i < options.names.size() ? options.names[i] : name_of_model(path);
    for (const serve::ModelSource& other : sources) {
      if (other.name != name) continue;
      throw UsageError(path.string(), fmt::format("two models would have the name '{}'", name),
                       "--alias names them, in their order");
    }
    serve::ModelSource source{path, options.adapter, name, options.engine, options.precision};
    if (!source.engine.cache_directory.empty()) source.engine.cache_directory /= name;
    sources.push_back(std::move(source));
  }
  return sources;
}

void run(const ServeCommand& options) {
  check_drafters(options.engine.draft);
  check_runs(options.server.runs);
  const std::vector<serve::ModelSource> sources = sources_of(options);
  // Models are loaded while the server runs, or when they are asked for: too late to be told.
  for (const serve::ModelSource& source : sources) serve::check_source(source);
  serve::Server server(options.server);
  warn_if_open(options.server);
  for (const serve::ModelSource& source : sources) {
    options.on_demand ? server.offer(source) : server.load(source);
  }
  spdlog::info("listening at http://{}:{}", options.server.host, server.port());
  serve_until_signal(server);
}

}  // namespace

void add_serve(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("serve", "Serve models over HTTP: OpenAI's and Anthropic's APIs, a page");
  auto options = std::make_shared<ServeCommand>();
  serve::ServerOptions& server = options->server;
  EngineOptions& engine = options->engine;
  command->add_option("models", options->models, "checkpoint directories or .gguf files")
      ->required();
  command
      ->add_option("--alias", options->names,
                   "name of a model, of the first, the second...; default: that of its file")
      ->allow_extra_args(false);
  add_server_options(*command, server);
  command->add_option("--cors", server.cors,
                      "origin whose pages may ask this server, or * (default: none)");
  command->add_option("--parallel", engine.sequences, "texts at most in one step (default 32)")
      ->transform(positive_integer());
  command
      ->add_option("--queue", engine.queue_requests,
                   "requests at most that wait (default 256); the next are answered with 429")
      ->transform(positive_integer());
  command
      ->add_option("--context", engine.context,
                   "longest text in tokens (default: what the model was trained for)")
      ->transform(natural_number());
  command
      ->add_option("--cache-bytes", engine.cache_bytes,
                   "memory for states of earlier texts (default 1073741824; 0: none)")
      ->transform(natural_number());
  command->add_option("--cache-dir", engine.cache_directory,
                      "directory where kept states survive the process");
  command->add_option("--draft", engine.draft,
                      "guess ahead, as generate --draft does, for the same texts sooner");
  command
      ->add_option("--drain-time", server.drain_seconds,
                   "seconds that SIGTERM and SIGINT leave running requests (default 30)")
      ->check(number_in_range(0, 1e6));
  command
      ->add_option("--body-bytes", server.body_bytes,
                   "largest body of a request (default 33554432)")
      ->transform(positive_integer());
  command->add_flag("--load-on-demand", options->on_demand,
                    "load a model when it is first asked for");
  command
      ->add_option(
          "--memory", server.memory_bytes,
          "bytes that all models may take; with --load-on-demand, those that were asked for "
          "longest ago go when it would be more (default: what the machine has)")
      ->transform(positive_integer());
  command->add_option("--session-dir", server.session_directory,
                      "directory where clients may save sessions and restore them from");
  command
      ->add_option("--watch", server.runs,
                   "also show the training runs of this folder, as pronghorn watch does")
      ->allow_extra_args(false);
  add_adapter_option(*command, options->adapter);
  add_precision_option(*command, options->precision);
  add_cache_options(*command, engine.kv_cache);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
