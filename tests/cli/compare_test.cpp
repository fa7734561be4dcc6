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
    EXPECT_EQ(architecture["train_tokens"], 2560);
    EXPECT_GT(architecture["held_out_bits_per_byte"].get<double>(), 0);
    EXPECT_EQ(architecture["curve"].size(), 10u);
    EXPECT_EQ(architecture["inference"].size(), 2u);
    EXPECT_FALSE(architecture["sample"].get<std::string>().empty());
    EXPECT_TRUE(std::filesystem::exists(folder_ / "out" / architecture["name"].get<std::string>() /
                                        "model.safetensors"));
  }
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

}  // namespace
}  // namespace pronghorn
