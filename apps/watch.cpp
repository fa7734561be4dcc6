// pronghorn watch: curves of training runs, while they go on.
#include <memory>

#include "base/log.h"
#include "command.h"
#include "server_run.h"

namespace pronghorn::app {
namespace {

struct WatchCommand : Common {
  serve::ServerOptions server;
};

void run(const WatchCommand& options) {
  check_runs(options.server.runs);
  serve::Server server(options.server);
  warn_if_open(options.server);
  spdlog::info("curves at http://{}:{}/watch", options.server.host, server.port());
  serve_until_signal(server);
}

}  // namespace

void add_watch(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("watch", "Show the curves of training runs, while they go on, on a page");
  auto options = std::make_shared<WatchCommand>();
  options->server.port = 8090;
  command
      ->add_option("runs", options->server.runs,
                   "folders of training runs, or folders with such folders in them")
      ->required();
  add_server_options(*command, options->server);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
