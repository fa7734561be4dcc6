#include "server_run.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>

#include "base/error.h"
#include "base/log.h"

namespace pronghorn::app {
namespace {

std::atomic<int> signals_seen{0};
struct sigaction before_interrupt {
}, before_terminate{};

void watch_signals() {
  struct sigaction action {};
  // A second one ends the process as it would have without this.
  action.sa_handler = [](int) {
    ++signals_seen;
    ::sigaction(SIGINT, &before_interrupt, nullptr);
    ::sigaction(SIGTERM, &before_terminate, nullptr);
  };
  ::sigaction(SIGINT, &action, &before_interrupt);
  ::sigaction(SIGTERM, &action, &before_terminate);
}

}  // namespace

void add_server_options(CLI::App& command, serve::ServerOptions& server) {
  command.add_option("--host", server.host, "address to listen at (default 127.0.0.1)");
  command
      .add_option("--port", server.port,
                  fmt::format("port (default {}; 0: any that is free)", server.port))
      ->check(CLI::Range(0, 65535));
  command.add_option("--api-key-file", server.key_file,
                     "file with a key per line, one of which requests must have");
}

void check_runs(const std::vector<std::filesystem::path>& folders) {
  for (const std::filesystem::path& folder : folders) {
    if (!std::filesystem::is_directory(folder)) {
      throw UsageError(folder.string(), "there is no such folder",
                       "give what train --out or compare --out were given");
    }
  }
}

void warn_if_open(const serve::ServerOptions& options) {
  const bool local =
      options.host == "localhost" || options.host == "::1" || options.host.starts_with("127.");
  if (!local && options.key_file.empty()) {
    spdlog::warn("everybody who can reach {}:{} may use this server (--api-key-file asks for keys)",
                 options.host, options.port);
  }
}

void serve_until_signal(serve::Server& server) {
  watch_signals();
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

RunsServer::RunsServer(const serve::ServerOptions& options) : server_(options) {
  warn_if_open(options);
  spdlog::info("curves at http://{}:{}/watch", options.host, server_.port());
  thread_ = std::thread([this] { server_.run(); });
}

RunsServer::~RunsServer() {
  server_.drain();
  thread_.join();
}

}  // namespace pronghorn::app
