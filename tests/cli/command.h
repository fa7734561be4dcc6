// Runs the built command as a child process, and the inputs that its tests share.
#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/files.h"
#include "support/folder.h"
#include "support/tiny_models.h"

namespace pronghorn::testing_cli {

struct Finished {
  int code = -1;   // exit code, or -1 after a signal
  int signal = 0;  // that ended it
  std::string out, err;
};

struct Conditions {
  std::optional<rlim_t> file_bytes;    // no file may grow beyond
  std::optional<double> signal_after;  // seconds until `signal` is sent
  std::string after_file;              // counted from when this file is there
  int signal = SIGINT;
  std::string input;  // on standard input; empty: nothing there
  // Where standard output goes: a file, "closed", or "unread" (a pipe that nobody reads); empty:
  // kept for `out`.
  std::string output;
  int processes = 0;  // above 0: mpirun starts so many
};

// Each test has its own folder, which is the working directory of its commands.
class CliTest : public testing::Test {
 protected:
  CliTest() {
    put("text.txt", text());
    put("tiny.json", config("a m").dump());
    put("llama.json", config("2a").dump());
  }

  std::filesystem::path put(const std::string& name, std::string_view bytes) {
    write_file(folder_ / name, bytes);
    return folder_ / name;
  }

  static std::string text() {
    std::string text;
    for (int i = 0; i < 600; ++i)
      text += fmt::format("line {} of the plain, far and wide\n", i % 97);
    return text;
  }

  static nlohmann::json config(const std::string& pattern) {
    nlohmann::json config = testing_support::tiny_json(pattern);
    config["train"] = {
        {"window", 32}, {"batch_tokens", 256}, {"learning_rate", 0.01}, {"precision", "f32"}};
    return config;
  }

  Finished run(const std::vector<std::string>& arguments, const Conditions& conditions = {}) const {
    if (!conditions.input.empty()) write_file(folder_ / "stdin", conditions.input);
    const pid_t child = ::fork();
    if (child == 0) {
      const int out = ::open((folder_ / "stdout").c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644);
      const int err = ::open((folder_ / "stderr").c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644);
      if (::chdir(folder_.path().c_str()) != 0 || out < 0 || err < 0) ::_exit(126);
      ::dup2(output_descriptor(conditions.output, out), STDOUT_FILENO);
      ::dup2(err, STDERR_FILENO);
      ::close(out);
      ::close(err);
      if (conditions.output == "closed") ::close(STDOUT_FILENO);
      const int in = ::open(conditions.input.empty() ? "/dev/null" : "stdin", O_RDONLY);
      ::dup2(in, STDIN_FILENO);
      ::close(in);
      if (conditions.file_bytes) {
        // Ignored, so that a write beyond the limit fails as on a full disk.
        ::signal(SIGXFSZ, SIG_IGN);
        const rlimit limit = {*conditions.file_bytes, *conditions.file_bytes};
        ::setrlimit(RLIMIT_FSIZE, &limit);
      }
      std::vector<char*> argv = {const_cast<char*>(PRONGHORN_CLI)};
      const std::string processes = std::to_string(conditions.processes);
      if (conditions.processes > 0) {
        // Containers forbid processes to read one another's memory, which ranks try first.
        for (const auto& [name, value] : {std::pair("OMPI_ALLOW_RUN_AS_ROOT", "1"),
                                          {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
                                          {"OMPI_MCA_btl_vader_single_copy_mechanism", "none"},
                                          {"PRONGHORN_THREADS", "1"}}) {
          ::setenv(name, value, 1);
        }
        for (const char* word : {"--oversubscribe", processes.c_str(), "-n", mpirun()}) {
          argv.insert(argv.begin(), const_cast<char*>(word));
        }
      }
      for (const std::string& argument : arguments) {
        argv.push_back(const_cast<char*>(argument.c_str()));
      }
      argv.push_back(nullptr);
      ::execv(argv.front(), argv.data());
      ::_exit(127);
    }
    if (conditions.signal_after) {
      for (int i = 0; i < 6000 && !conditions.after_file.empty() &&
                      !std::filesystem::exists(folder_ / conditions.after_file);
           ++i) {
        ::usleep(10000);
      }
      ::usleep(static_cast<useconds_t>(1e6 * *conditions.signal_after));
      ::kill(child, conditions.signal);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    Finished finished;
    if (WIFEXITED(status)) finished.code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) finished.signal = WTERMSIG(status);
    finished.out = read_file(folder_ / "stdout");
    finished.err = read_file(folder_ / "stderr");
    return finished;
  }

  // Where mpirun is; empty in a build without MPI, or with sanitizers, which report what MPI itself
  // leaves behind.
  static const char* mpirun() {
#ifdef PRONGHORN_MPIRUN
    return PRONGHORN_MPIRUN;
#else
    return "";
#endif
  }

  static int output_descriptor(const std::string& output, int kept) {
    if (output.empty() || output == "closed") return kept;
    if (output != "unread") return ::open(output.c_str(), O_WRONLY);
    int ends[2];
    if (::pipe(ends) != 0) ::_exit(126);
    ::close(ends[0]);
    return ends[1];
  }

  // Runs what must succeed.
  std::string output_of(const std::vector<std::string>& arguments) const {
    const Finished finished = run(arguments);
    EXPECT_EQ(finished.code, 0) << fmt::format("{}", fmt::join(arguments, " ")) << "\n"
                                << finished.err;
    return finished.out;
  }

  // The one document on stdout.
  nlohmann::json json_of(std::vector<std::string> arguments) const {
    arguments.push_back("--json");
    const std::string out = output_of(arguments);
    // parse() refuses anything before or after the document.
    const nlohmann::json json = nlohmann::json::parse(out, nullptr, false);
    EXPECT_FALSE(json.is_discarded()) << fmt::format("{}", fmt::join(arguments, " ")) << "\n"
                                      << out;
    return json;
  }

  // The last line on stderr of what must fail with `code`; stdout must stay empty.
  std::string failure_of(int code, const std::vector<std::string>& arguments,
                         const Conditions& conditions = {}) const {
    const Finished finished = run(arguments, conditions);
    const std::string command = fmt::format("{}", fmt::join(arguments, " "));
    EXPECT_EQ(finished.code, code) << command << "\n" << finished.err;
    EXPECT_EQ(finished.out, "") << command;
    std::string err = finished.err;
    EXPECT_TRUE(err.ends_with("\n")) << command;
    if (!err.empty()) err.pop_back();
    const size_t begin = err.rfind('\n');
    const std::string last = begin == err.npos ? err : err.substr(begin + 1);
    EXPECT_TRUE(last.starts_with("pronghorn: ")) << command << "\n" << finished.err;
    // Other lines may only be the log of what was going well.
    size_t messages = 0;
    for (size_t at = err.find("pronghorn: "); at != err.npos;
         at = err.find("pronghorn: ", at + 1)) {
      ++messages;
    }
    EXPECT_EQ(messages, 1u) << finished.err;
    EXPECT_LT(last.size(), 400u) << last;
    return last;
  }

  testing_support::Folder folder_;
};

}  // namespace pronghorn::testing_cli
