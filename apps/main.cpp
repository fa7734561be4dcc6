// pronghorn: train, run and compare efficient language-model architectures.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <system_error>
#include <thread>

#include "arguments.h"
#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/quote.h"
#include "base/ranks.h"
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
    std::string problem = pronghorn::app::as_written(error.what());
    if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
      std::vector<std::string> unknown = chosen.front()->remaining();
      std::ranges::reverse(unknown);  // as it was given
      problem = fmt::format("unknown option or argument: {}",
                            pronghorn::app::as_written(fmt::format("{}", fmt::join(unknown, " "))));
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

// A message as it goes to the terminal. Of a very long one (which has a long path or name in it)
// the beginning and the end, where the remedy is.
std::string shown(std::string_view message) {
  constexpr size_t kLongest = 380;
  if (message.size() <= kLongest) return pronghorn::printable(message, kLongest);
  size_t head = kLongest / 2, tail = message.size() - kLongest / 2;
  const auto inside = [&](size_t at) { return (message[at] & 0xC0) == 0x80; };
  while (head > 0 && inside(head)) --head;
  while (tail < message.size() && inside(tail)) ++tail;
  return pronghorn::printable(message.substr(0, head), kLongest) + " ... " +
         pronghorn::printable(message.substr(tail), kLongest);
}

// What went wrong went wrong in all processes of mpirun, most often. It ends all of them after the
// first that fails: give that one the time to say why.
int failed(int status, std::string_view message) {
  if (pronghorn::launch_of_mpirun().rank > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
  }
  fmt::print(stderr, "pronghorn: {}\n", shown(message));
  return status;
}

// What is wrong when memory cannot be had.
std::string memory_message() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    return fmt::format(
        "out of memory: the process may take {} of address space (raise ulimit -v, or "
        "use a smaller batch, context or model)",
        pronghorn::format_bytes(static_cast<double>(limit.rlim_cur)));
  }
  return "out of memory (use a smaller batch, context or model)";
}

// Of a command that knows nothing of other processes, the first that mpirun started does the work;
// the others leave by CLI::Success.
void leave_to_first_process(const CLI::App& app) {
  const pronghorn::Launch launch = pronghorn::launch_of_mpirun();
  if (launch.count <= 1) return;
  const CLI::App& command = *app.get_subcommands().front();
  const std::string& name = command.get_name();
  const CLI::Option* const shared = command.get_option_no_throw("--sequence-parallel");
  if (name == "train" || name == "compare" || (shared != nullptr && shared->count() > 0)) return;
  if (launch.rank > 0) throw CLI::Success();
  fmt::print(stderr, "{} works in one process; the others of mpirun's {} end{}\n", name,
             launch.count, shared == nullptr ? "" : " (--sequence-parallel uses all)");
}

// Throws OutputClosed or Error, too, where a command printed more than a buffer holds and it could
// not be written, of which fmt::print() tells by another exception.
void run(CLI::App& app, std::vector<std::string> arguments) {
  try {
    app.parse(std::move(arguments));
    pronghorn::app::flush_output();
  } catch (const std::system_error& error) {
    if (std::ferror(stdout) != 0) pronghorn::app::throw_output_error(error.code().value());
    throw;
  }
}

}  // namespace

int main(int argc, char** argv) {
  using namespace pronghorn;
  using namespace pronghorn::app;
  keep_standard_descriptors();
  std::signal(SIGPIPE, SIG_IGN);
  remove_partial_files_at_signals();
  show_messages(true);
  CLI::App app("Train, run and compare efficient language-model architectures.", "pronghorn");
  app.require_subcommand(1);
  app.set_version_flag("--version", PRONGHORN_VERSION);
  add_list(app);
  add_inspect(app);
  add_train(app);
  add_generate(app);
  add_eval(app);
  add_compare(app);
  add_classify(app);
  add_transcribe(app);
  add_bench(app);
  add_logits(app);
  add_tokenize(app);
  add_convert(app);
  add_linearise(app);
  add_extend(app);
  add_template(app);
  add_chat(app);
  add_serve(app);
  add_watch(app);
  protect_values(app);
  app.parse_complete_callback([&app] { leave_to_first_process(app); });
  try {
    std::vector<std::string> arguments = plain_arguments(app, {argv + 1, argv + argc});
    std::ranges::reverse(arguments);  // as CLI11 wants them
    run(app, std::move(arguments));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help, --version
      return launch_of_mpirun().rank > 0 ? 0 : app.exit(error);
    }
    return failed(kWrongUsage, usage_message(app, error, argc, argv));
  } catch (const OutputClosed&) {
    return 0;
  } catch (const UsageError& error) {
    return failed(kWrongUsage, error.what());
  } catch (const std::bad_alloc&) {
    return failed(kFailed, memory_message());
  } catch (const std::filesystem::filesystem_error& error) {
    return failed(kFailed, fmt::format("{}: {} (check the path)", error.path1().string(),
                                       error.code().message()));
  } catch (const std::exception& error) {
    return failed(kFailed, error.what());
  }
  return 0;
}
