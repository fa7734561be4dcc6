// pronghorn: train, run and compare efficient language-model architectures.
#include <csignal>
#include <cstdio>
#include <exception>

#include "base/error.h"
#include "base/log.h"
#include "command.h"
#include "formats/json.h"
#include "output.h"

namespace {

// The contract of the command line: 0 done, 2 wrong usage, 1 anything else.
constexpr int kFailed = 1, kWrongUsage = 2;

// What is wrong with the command line, in one line.
std::string usage_message(const CLI::App& app, const CLI::ParseError& error, int argc,
                          char** argv) {
  const auto chosen = app.get_subcommands();
  if (!chosen.empty()) {
    std::string problem = error.what();
    if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
      problem = fmt::format("unknown option or argument: {}",
                            fmt::join(chosen.front()->remaining(), " "));
    }
    return fmt::format("{0}: {1} (see pronghorn {0} --help)", chosen.front()->get_name(), problem);
  }
  std::vector<std::string> commands;
  for (const CLI::App* command : app.get_subcommands({})) commands.push_back(command->get_name());
  if (argc < 2) {
    return fmt::format("no command given (choose from {}; see pronghorn --help)",
                       fmt::join(commands, ", "));
  }
  const std::string nearest = pronghorn::nearest_name(argv[1], commands);
  return fmt::format("unknown command '{}' ({}; see pronghorn --help)", argv[1],
                     nearest.empty() ? fmt::format("choose from {}", fmt::join(commands, ", "))
                                     : fmt::format("did you mean '{}'?", nearest));
}

}  // namespace

int main(int argc, char** argv) {
  using namespace pronghorn;
  using namespace pronghorn::app;
  keep_standard_descriptors();
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
  add_template(app);
  try {
    app.parse(argc, argv);
    flush_output();
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    fmt::print(stderr, "pronghorn: {}\n", usage_message(app, error, argc, argv));
    return kWrongUsage;
  } catch (const OutputClosed&) {
    return 0;
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
  return 0;
}
