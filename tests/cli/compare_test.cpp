// pronghorn compare from end to end: results, report, failures of one configuration, interruptions.
#include <gmock/gmock.h>

#include "cli/command.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_cli::CliTest;
using testing_cli::Conditions;
using testing_cli::Finished;

std::vector<std::string> compare_of(const std::vector<std::string>& configs, const std::string& out,
                                    const std::string& tokens) {
  std::vector<std::string> command = {"compare"};
  command.insert(command.end(), configs.begin(), configs.end());
  command.insert(command.end(), {"--data", "text.txt", "--out", out, "--tokens", tokens, "--vocab",
                                 "0", "--contexts", "32,64"});
  return command;
}

TEST_F(CliTest, CompareFromEndToEnd) {
  const auto run = json_of(compare_of({"tiny.json", "llama.json"}, "out", "2560"));
  EXPECT_EQ(run, nlohmann::json::parse(read_file(folder_ / "out/results.json")));
  ASSERT_EQ(run["architectures"].size(), 2u);
  for (const auto& architecture : run["architectures"]) {
    EXPECT_TRUE(architecture["failure"].is_null());
    EXPECT_TRUE(architecture["kind"].is_string());
    EXPECT_EQ(architecture["train_tokens"], 2560);
    EXPECT_GT(architecture["held_out_bits_per_byte"].get<double>(), 0);
    EXPECT_EQ(architecture["curve"].size(), 10u);
    EXPECT_EQ(architecture["inference"].size(), 2u);
    EXPECT_FALSE(architecture["sample"].get<std::string>().empty());
    EXPECT_TRUE(std::filesystem::exists(folder_ / "out" / architecture["name"].get<std::string>() /
                                        "model.safetensors"));
  }
  EXPECT_THAT(read_file(folder_ / "out/report.md"),
              AllOf(HasSubstr("| tiny |"), HasSubstr("| llama |"), HasSubstr("2.56k")));
  const std::string report = read_file(folder_ / "out/report.html");
  EXPECT_THAT(report, AllOf(HasSubstr("<!DOCTYPE html>"), HasSubstr("tiny"), HasSubstr("llama")));
  // Nothing is loaded from anywhere: no address in an attribute or a style that loads.
  for (const char* load : {"src=\"http", "href=\"http", "src='http", "url(http", "@import",
                           "src=\"//", "<link", "src=\"/"}) {
    EXPECT_EQ(report.find(load), report.npos) << load;
  }
  // A second call finds all done, and prints the table.
  const std::string table = output_of(compare_of({"tiny.json", "llama.json"}, "out", "2560"));
  EXPECT_THAT(table, AllOf(HasSubstr("tiny"), HasSubstr("llama"), HasSubstr("report.html")));
  EXPECT_THAT(failure_of(1, compare_of({"tiny.json"}, "out", "5120")),
              HasSubstr("other data, budget or seed"));
}

TEST_F(CliTest, CompareOnATask) {
  const std::vector<std::string> command = {
      "compare", "tiny.json",        "llama.json", "--task",
      "niah",    "--data",           "text.txt",   "--out",
      "out",     "--tokens",         "2048",       "--task-length",
      "64",      "--task-questions", "2",          "--task-multiples",
      "1,4",     "--task-examples",  "3"};
  const auto run = json_of(command);
  ASSERT_EQ(run["architectures"].size(), 2u);
  for (const auto& architecture : run["architectures"]) {
    EXPECT_TRUE(architecture["failure"].is_null());
    EXPECT_TRUE(architecture["held_out_bits_per_byte"].is_null());
    ASSERT_EQ(architecture["tasks"].size(), 6u);  // three needles at two lengths
    EXPECT_EQ(architecture["tasks"][5]["task"], "niah_key");
    EXPECT_EQ(architecture["tasks"][5]["length"], 256);
    EXPECT_GT(architecture["tasks"][5]["state_bytes"], 0);
  }
  EXPECT_EQ(run["data"]["vocab_size"], 273);
  // A second call finds all done, and prints a table with a column a needle and length.
  const std::string table = output_of(command);
  EXPECT_THAT(table, AllOf(HasSubstr("niah_number"), HasSubstr("256"), HasSubstr("report.html")));
  EXPECT_EQ(table.find("held-out"), table.npos);
  EXPECT_THAT(
      failure_of(2, {"compare", "tiny.json", "--task", "niah", "--out", "o", "--tokens", "9"}),
      HasSubstr("--data"));
}

TEST_F(CliTest, CompareGoesOnAfterAFailure) {
  auto hopeless = config("2a");
  hopeless["train"]["window"] = 1 << 20;  // more than the text has
  put("hopeless.json", hopeless.dump());
  const Finished finished = run(compare_of({"hopeless.json", "tiny.json"}, "out", "1280"));
  EXPECT_EQ(finished.code, 1);
  EXPECT_THAT(finished.err, AllOf(HasSubstr("pronghorn: hopeless: "), HasSubstr("window")));
  const auto run = nlohmann::json::parse(read_file(folder_ / "out/results.json"));
  ASSERT_EQ(run["architectures"].size(), 2u);
  EXPECT_THAT(run["architectures"][0]["failure"].get<std::string>(), HasSubstr("window"));
  EXPECT_TRUE(run["architectures"][1]["failure"].is_null());
  EXPECT_EQ(run["architectures"][1]["train_tokens"], 1280);
  EXPECT_THAT(finished.out, HasSubstr("hopeless"));
}

TEST_F(CliTest, CompareRefusesBadConfigurationsFirst) {
  auto bad = config("2a");
  bad["hidden_sise"] = 3;
  put("bad.json", bad.dump());
  EXPECT_THAT(failure_of(1, compare_of({"tiny.json", "bad.json"}, "out", "1280")),
              HasSubstr("bad.json: unknown key"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out/tiny"));
  EXPECT_THAT(failure_of(1, compare_of({"tiny.json", "tiny.json"}, "out", "1280")),
              HasSubstr("has the name 'tiny' too"));
  EXPECT_THAT(failure_of(2, {"compare", "tiny.json", "--data", "text.txt", "--out", "out"}),
              HasSubstr("budget"));
}

TEST_F(CliTest, AnInterruptedComparisonContinues) {
  const std::vector<std::string> configs = {"tiny.json", "llama.json"};
  output_of(compare_of(configs, "whole", "10240"));
  for (const int signal : {SIGINT, SIGKILL}) {
    const std::string out = signal == SIGINT ? "interrupted" : "killed";
    // In the middle of the second architecture's training.
    Conditions stop;
    stop.signal = signal;
    stop.after_file = out + "/llama/log.jsonl";
    stop.signal_after = 0.1;
    const Finished stopped = run(compare_of(configs, out, "10240"), stop);
    if (signal == SIGINT && stopped.code != 0) {
      EXPECT_EQ(stopped.code, 1) << stopped.err;
      EXPECT_THAT(stopped.err, HasSubstr("run the same command again to continue"));
    }
    const Finished finished = run(compare_of(configs, out, "10240"));
    EXPECT_EQ(finished.code, 0) << finished.err;
    EXPECT_THAT(finished.err, HasSubstr("tiny: done before"));
    const auto whole = nlohmann::json::parse(read_file(folder_ / "whole/results.json"));
    const auto parts = nlohmann::json::parse(read_file(folder_ / out / "results.json"));
    ASSERT_EQ(parts["architectures"].size(), 2u);
    for (size_t i = 0; i < 2; ++i) {
      for (const char* key : {"name", "train_tokens", "held_out_bits_per_byte",
                              "best_held_out_bits_per_byte", "parameters", "sample"}) {
        EXPECT_EQ(parts["architectures"][i][key], whole["architectures"][i][key]) << key;
      }
      EXPECT_EQ(parts["architectures"][i]["curve"].size(), 40u);
    }
    for (const char* name : {"tiny", "llama"}) {
      EXPECT_TRUE(read_file(folder_ / out / name / "model.safetensors") ==
                  read_file(folder_ / "whole" / name / "model.safetensors"))
          << name;
    }
  }
}

// What does not depend on the clock: the results of several processes are those of one.
TEST_F(CliTest, ProcessesShareAComparison) {
  if (*mpirun() == '\0') GTEST_SKIP() << "NOT TESTED: no mpirun in this build";
  put("third.json", config("m").dump());
  const std::vector<std::string> configs = {"tiny.json", "llama.json", "third.json"};
  output_of(compare_of(configs, "one", "2560"));
  Conditions two;
  two.processes = 2;

  // The model of the second process ends in a failure, which the first reports.
  auto hopeless = config("2a");
  hopeless["train"]["window"] = 1 << 20;
  put("llama.json", hopeless.dump());
  const Finished failed = run(compare_of(configs, "two", "2560"), two);
  EXPECT_NE(failed.code, 0);
  EXPECT_THAT(failed.err, AllOf(HasSubstr("rank 0: tiny, third"), HasSubstr("rank 1: llama"),
                                HasSubstr("pronghorn: llama: ")));

  // Then a run that ended before its first process had all results: what the others had finished is
  // taken from their files, by any number of processes.
  put("llama.json", config("2a").dump());
  auto results = nlohmann::json::parse(read_file(folder_ / "two/results.json"));
  ASSERT_EQ(results["architectures"].size(), 3u);
  auto part = results;
  part["architectures"] = nlohmann::json::array({results["architectures"][2]});
  put("two/third/result.json", part.dump());
  results["architectures"] = {results["architectures"][0], results["architectures"][1]};
  put("two/results.json", results.dump());
  const Finished finished = run(compare_of(configs, "two", "2560"), two);
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.err, AllOf(HasSubstr("tiny: done before"), HasSubstr("third: done before")));
  EXPECT_EQ(finished.err.find("llama: done before"), std::string::npos);

  const auto one = nlohmann::json::parse(read_file(folder_ / "one/results.json"));
  const auto both = nlohmann::json::parse(read_file(folder_ / "two/results.json"));
  ASSERT_EQ(both["architectures"].size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(both["architectures"][i]["failure"].is_null());
    for (const char* key : {"name", "train_tokens", "held_out_bits_per_byte", "sample"}) {
      EXPECT_EQ(both["architectures"][i][key], one["architectures"][i][key]) << key;
    }
    const std::string name = one["architectures"][i]["name"];
    EXPECT_FALSE(std::filesystem::exists(folder_ / "two" / name / "result.json")) << name;
  }
  // One table, by the first process.
  EXPECT_EQ(finished.out.find("Report: "), finished.out.rfind("Report: "));
  EXPECT_THAT(finished.out, HasSubstr("Report: "));
}

// What is left when mpirun ends all processes, as it does when one of them is killed.
TEST_F(CliTest, ASharedComparisonContinues) {
  if (*mpirun() == '\0') GTEST_SKIP() << "NOT TESTED: no mpirun in this build";
  const std::vector<std::string> configs = {"tiny.json", "llama.json"};
  output_of(compare_of(configs, "whole", "20480"));
  Conditions killed;
  killed.processes = 2;
  killed.after_file = "out/llama/log.jsonl";
  killed.signal_after = 0.1;
  killed.signal = SIGTERM;  // mpirun hands it to the processes, and then kills them
  const Finished stopped = run(compare_of(configs, "out", "20480"), killed);
  EXPECT_THAT(stopped.err, HasSubstr("if one of them ends, all do"));
  const Finished finished = run(compare_of(configs, "out", "20480"));  // in one process
  EXPECT_EQ(finished.code, 0) << finished.err;
  for (const char* name : {"tiny", "llama"}) {
    EXPECT_TRUE(read_file(folder_ / "out" / name / "model.safetensors") ==
                read_file(folder_ / "whole" / name / "model.safetensors"))
        << name;
  }
}

// A command that works in one process does its work once.
TEST_F(CliTest, OtherCommandsRunOnceUnderMpirun) {
  if (*mpirun() == '\0') GTEST_SKIP() << "NOT TESTED: no mpirun in this build";
  Conditions three;
  three.processes = 3;
  const Finished finished = run({"inspect", "tiny.json", "--json"}, three);
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_TRUE(nlohmann::json::accept(finished.out)) << finished.out;  // one document
  const std::string said = "inspect works in one process; the others of mpirun's 3 end";
  EXPECT_THAT(finished.err, HasSubstr(said));
  EXPECT_EQ(finished.err.find(said), finished.err.rfind(said));
  const Finished wrong = run({"eval", "--no-such-option"}, three);
  EXPECT_NE(wrong.code, 0);
  EXPECT_THAT(wrong.err, HasSubstr("pronghorn: eval: "));
}

}  // namespace
}  // namespace pronghorn
