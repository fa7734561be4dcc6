// pronghorn serve: models behind HTTP.
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "serve/http/server.h"

namespace pronghorn::app {
namespace {

struct ServeCommand : Common {
  std::vector<std::filesystem::path> models;
  std::vector<std::string> names;
  std::filesystem::path adapter;
  std::optional<Precision> precision;
  EngineOptions engine;
  serve::ServerOptions server;
};

std::atomic<int> signals_seen{0};

// The first signal drains, the second ends the process at once.
void watch_signals() {
  struct sigaction action {};
  action.sa_handler = [](int) {
    if (++signals_seen > 1) ::_exit(1);
  };
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

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

void warn_if_open(const serve::ServerOptions& options) {
  const bool local =
      options.host == "localhost" || options.host == "::1" || options.host.starts_with("127.");
  if (!local && options.key_file.empty()) {
    spdlog::warn("everybody who can reach {}:{} may use this server (--api-key-file asks for keys)",
                 options.host, options.port);
  }
}

void run(const ServeCommand& options) {
  check_drafters(options.engine.draft);
  const std::vector<serve::ModelSource> sources = sources_of(options);
  serve::Server server(options.server);
  warn_if_open(options.server);
  watch_signals();
  for (const serve::ModelSource& source : sources) server.load(source);
  spdlog::info("listening at http://{}:{}", options.server.host, server.port());
  std::atomic<bool> ended{false};
  std::thread watcher([&] {
    while (signals_seen == 0 && !ended) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    if (ended) return;
    spdlog::info("ending: waiting for running requests (a second signal ends at once)");
    server.drain();
  });
  server.run();
  ended = true;
  watcher.join();
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
  command->add_option("--host", server.host, "address to listen at (default 127.0.0.1)");
  command->add_option("--port", server.port, "port (default 8080; 0: any that is free)")
      ->check(CLI::Range(0, 65535));
  command->add_option("--api-key-file", server.key_file,
                      "file with a key per line, one of which requests must have");
  command->add_option("--cors", server.cors,
                      "origin whose pages may ask this server, or * (default: none)");
  command->add_option("--parallel", engine.sequences, "texts at most in one step (default 32)")
      ->check(positive_integer());
  command
      ->add_option("--queue", engine.queue_requests,
                   "requests at most that wait (default 256); the next are answered with 429")
      ->check(positive_integer());
  command
      ->add_option("--context", engine.context,
                   "longest text in tokens (default: what the model was trained for)")
      ->check(natural_number());
  command
      ->add_option("--cache-bytes", engine.cache_bytes,
                   "memory for states of earlier texts (default 1073741824; 0: none)")
      ->check(natural_number());
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
      ->check(positive_integer());
  add_adapter_option(*command, options->adapter);
  add_precision_option(*command, options->precision);
  add_cache_options(*command, engine.kv_cache);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
