// Commands under mpirun: work that is shared, what is printed once, and output without escapes.
#include <gmock/gmock.h>
#include <stdlib.h>

#include "cli/command.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing_cli::CliTest;
using testing_cli::Conditions;
using testing_cli::Finished;

Conditions on(int processes) {
  Conditions conditions;
  conditions.processes = processes;
  return conditions;
}

TEST_F(CliTest, ProcessesReadAPromptTogether) {
  if (*mpirun() == '\0') GTEST_SKIP() << "NOT TESTED: no mpirun in this build";
  output_of({"train", "tiny.json", "--data", "text.txt", "--out", "run", "--steps", "4"});
  put("prompt.txt", text().substr(0, 200));
  const std::vector<std::string> command = {"generate", "run", "--prompt-file", "prompt.txt",
                                            "--tokens", "24",  "--precision",   "f32"};
  const auto one = json_of(command);
  for (const char* kind : {"ulysses", "ring"}) {
    std::vector<std::string> shared = command;
    shared.insert(shared.end(), {"--sequence-parallel", kind, "--json"});
    const Finished finished = run(shared, on(2));
    EXPECT_EQ(finished.code, 0) << finished.err;
    const auto both = nlohmann::json::parse(finished.out, nullptr, false);  // one document
    ASSERT_FALSE(both.is_discarded()) << finished.out;
    EXPECT_EQ(both["ids"], one["ids"]) << kind;
    EXPECT_EQ(both["prompt_tokens"], one["prompt_tokens"]);
    EXPECT_EQ(both["context"], one["context"]);
  }
  // A session goes on in one process, as any.
  std::vector<std::string> kept = command;
  kept.insert(kept.end(), {"--session", "s", "--sequence-parallel", "ring", "--json"});
  const Finished saved = run(kept, on(2));
  EXPECT_EQ(saved.code, 0) << saved.err;
  EXPECT_TRUE(std::filesystem::exists(folder_ / "s"));
  output_of({"generate", "run", "--prompt", "and", "--tokens", "4", "--session", "s"});
  // What one process refuses ends all of them, with one message.
  const Finished refused = run({"generate", "run", "--prompt", "far", "--tokens", "4", "--draft",
                                "no-such-model", "--sequence-parallel", "ring"},
                               on(2));
  EXPECT_NE(refused.code, 0);
  EXPECT_THAT(refused.err, HasSubstr("no-such-model"));
  EXPECT_THAT(failure_of(2, {"generate", "run", "--prompt", "far", "--sequence-parallel", "ring",
                             "--cache-type", "bf16"}),
              HasSubstr("--sequence-parallel: with a cache of another kind"));
}

TEST_F(CliTest, TeamsOfProcessesTrainToTheBitsOfOneTeam) {
  if (*mpirun() == '\0') GTEST_SKIP() << "NOT TESTED: no mpirun in this build";
  const auto train = [&](const std::string& out, int processes) {
    const Finished finished =
        run({"train", "tiny.json", "--data", "text.txt", "--out", out, "--steps", "3", "--set",
             "gradient_groups=2", "--sequence-parallel", "ring", "--sequence-parallel-ranks", "2"},
            on(processes));
    EXPECT_EQ(finished.code, 0) << finished.err;
  };
  train("one", 2);
  train("two", 4);
  for (const char* file : {"model.safetensors", "config.json"}) {
    EXPECT_TRUE(read_file(folder_ / "one" / file) == read_file(folder_ / "two" / file)) << file;
  }
  const Finished odd = run({"train", "tiny.json", "--data", "text.txt", "--out", "odd", "--steps",
                            "1", "--sequence-parallel", "ring", "--sequence-parallel-ranks", "2"},
                           on(3));
  EXPECT_NE(odd.code, 0);
  EXPECT_THAT(odd.err, HasSubstr("sequence_parallel_ranks: 2 on 3 ranks"));
  EXPECT_THAT(failure_of(2, {"train", "tiny.json", "--data", "text.txt", "--out", "x", "--steps",
                             "1", "--sequence-parallel-ranks", "2"}),
              HasSubstr("--sequence-parallel"));
}

TEST_F(CliTest, EvalPrintsOnceUnderMpirun) {
  if (*mpirun() == '\0') GTEST_SKIP() << "NOT TESTED: no mpirun in this build";
  output_of({"train", "tiny.json", "--data", "text.txt", "--out", "run", "--steps", "1"});
  for (const std::vector<std::string>& more :
       {std::vector<std::string>{}, {"--sequence-parallel", "ring"}}) {
    std::vector<std::string> command = {"eval", "run", "--data", "text.txt", "--window", "64"};
    command.insert(command.end(), more.begin(), more.end());
    const Finished finished = run(command, on(2));
    EXPECT_EQ(finished.code, 0) << finished.err;
    EXPECT_THAT(finished.out, HasSubstr("perplexity"));
    EXPECT_EQ(finished.out.find("perplexity"), finished.out.rfind("perplexity")) << finished.out;
    // Said of what does not share its work alone.
    const std::string said = "eval works in one process; the others of mpirun's 2 end";
    EXPECT_EQ(finished.err.find(said) != finished.err.npos, more.empty()) << finished.err;
    EXPECT_EQ(finished.err.find(said), finished.err.rfind(said));
  }
}

// What a command prints on a terminal, with this variable of the environment.
class StylesTest : public CliTest {
 protected:
  std::string shown(const std::vector<std::string>& arguments, const char* variable,
                    const char* value) const {
    const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || ::grantpt(master) != 0 || ::unlockpt(master) != 0) return "no terminal";
    const int terminal = ::open(::ptsname(master), O_RDWR | O_NOCTTY);
    const pid_t child = ::fork();
    if (child == 0) {
      for (const char* name : {"NO_COLOR", "OMPI_COMM_WORLD_SIZE"}) ::unsetenv(name);
      ::setenv("TERM", "xterm-256color", 1);
      ::setenv(variable, value, 1);
      const int in = ::open("/dev/null", O_RDONLY);
      if (::chdir(folder_.path().c_str()) != 0 || in < 0 || terminal < 0) ::_exit(126);
      ::dup2(in, STDIN_FILENO);
      ::dup2(terminal, STDOUT_FILENO);
      ::dup2(terminal, STDERR_FILENO);
      std::vector<char*> argv = {const_cast<char*>(PRONGHORN_CLI)};
      for (const std::string& argument : arguments) {
        argv.push_back(const_cast<char*>(argument.c_str()));
      }
      argv.push_back(nullptr);
      ::execv(argv.front(), argv.data());
      ::_exit(127);
    }
    ::close(terminal);
    std::string text;
    char buffer[4096];
    // Ends with an error when nobody has the terminal open any more.
    for (ssize_t count = 0; (count = ::read(master, buffer, sizeof(buffer))) > 0;) {
      text.append(buffer, static_cast<size_t>(count));
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    ::close(master);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << text;
    return text;
  }
};

TEST_F(StylesTest, AreForTerminalsAlone) {
  auto memory = config("t");
  memory["blocks"] = {{"t", {{"mixer", {{"type", "titans_mac"}, {"heads", 2}, {"segment", 16}}}}}};
  put("memory.json", memory.dump());
  output_of({"train", "memory.json", "--data", "text.txt", "--out", "run", "--steps", "1"});
  put("words.txt", "far and wide");
  const std::vector<std::string> command = {"inspect", "run", "--text", "words.txt"};
  EXPECT_THAT(shown(command, "COLUMNS", "80"), HasSubstr("\x1b["));
  EXPECT_THAT(shown(command, "NO_COLOR", "1"), Not(HasSubstr("\x1b")));
  EXPECT_THAT(shown(command, "TERM", "dumb"), Not(HasSubstr("\x1b")));
  // Processes of mpirun have a pseudo-terminal each.
  EXPECT_THAT(shown(command, "OMPI_COMM_WORLD_SIZE", "2"), Not(HasSubstr("\x1b")));
  EXPECT_THAT(output_of(command), Not(HasSubstr("\x1b")));
  if (*mpirun() == '\0') return;
  const Finished under = run(command, on(2));
  EXPECT_EQ(under.code, 0) << under.err;
  EXPECT_THAT(under.out + under.err, Not(HasSubstr("\x1b")));
}

}  // namespace
}  // namespace pronghorn
