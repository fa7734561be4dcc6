// What commands that answer over HTTP share.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <thread>
#include <vector>

#include "serve/http/server.h"

namespace pronghorn::app {

// --host, --port and --api-key-file. Defaults are those of `server`.
void add_server_options(CLI::App& command, serve::ServerOptions& server);

// Throws UsageError for a folder that is not there.
void check_runs(const std::vector<std::filesystem::path>& folders);

// Says so where everybody may use the server.
void warn_if_open(const serve::ServerOptions& options);

// Answers requests until SIGINT or SIGTERM and until those that run then have ended. A second
// signal ends the process at once.
void serve_until_signal(serve::Server& server);

// A server of training runs, beside what the calling thread does while this lives.
class RunsServer {
 public:
  explicit RunsServer(const serve::ServerOptions& options);
  ~RunsServer();

 private:
  serve::Server server_;
  std::thread thread_;
};

}  // namespace pronghorn::app
