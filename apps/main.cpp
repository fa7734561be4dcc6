// pronghorn: train, run and compare efficient language-model architectures.
#include <csignal>
#include <cstdio>
#include <exception>

#include "base/error.h"
#include "base/log.h"
#include "command.h"

namespace {

// The contract of the command line: 0 done, 2 wrong usage, 1 anything else.
constexpr int kFailed = 1, kWrongUsage = 2;

}  // namespace

int main(int argc, char** argv) {
  using namespace pronghorn;
  using namespace pronghorn::app;
  std::signal(SIGPIPE, SIG_IGN);
  set_up_log(false);
  CLI::App app("Train, run and compare efficient language-model architectures.", "pronghorn");
  app.require_subcommand(1);
  app.set_version_flag("--version", PRONGHORN_VERSION);
  add_list(app);
  add_inspect(app);
  add_train(app);
  add_generate(app);
  add_eval(app);
  add_compare(app);
  add_bench(app);
  add_logits(app);
  add_tokenize(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    fmt::print(
        stderr, "pronghorn: {} (see pronghorn {}--help)\n", error.what(),
        app.get_subcommands().empty() ? "" : app.get_subcommands().front()->get_name() + " ");
    return kWrongUsage;
  } catch (const UsageError& error) {
    fmt::print(stderr, "pronghorn: {}\n", error.what());
    return kWrongUsage;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "pronghorn: out of memory (use a smaller batch, context or model)\n");
    return kFailed;
  } catch (const std::exception& error) {
    fmt::print(stderr, "pronghorn: {}\n", error.what());
    return kFailed;
  }
  if (std::fflush(stdout) != 0) {
    fmt::print(stderr, "pronghorn: cannot write to stdout\n");
    return kFailed;
  }
  return 0;
}
