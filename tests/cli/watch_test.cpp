// pronghorn watch and compare --watch from end to end.
#include <gmock/gmock.h>
#include <httplib.h>

#include <thread>

#include "cli/command.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_cli::CliTest;
using testing_cli::Conditions;
using testing_cli::Finished;

// The port that a command says it listens at, once it has; 0: it never does.
int port_in(const std::filesystem::path& file) {
  const std::string mark = "http://127.0.0.1:";
  for (int i = 0; i < 1000; ++i) {
    std::error_code error;
    if (std::filesystem::exists(file, error)) {
      const std::string text = read_file(file);
      const size_t at = text.find(mark), end = text.find("/watch");
      if (at != text.npos && end != text.npos) return std::stoi(text.substr(at + mark.size()));
    }
    ::usleep(20000);
  }
  return 0;
}

TEST_F(CliTest, WatchShowsRunsUntilASignal) {
  output_of({"train", "tiny.json", "--data", "text.txt", "--out", "runs/one", "--steps", "4"});
  Finished finished;
  Conditions conditions;
  conditions.signal_after = 0;
  conditions.after_file = "seen";
  conditions.signal = SIGTERM;
  std::thread command([&] { finished = run({"watch", "runs", "--port", "0"}, conditions); });
  const int port = port_in(folder_ / "stderr");
  nlohmann::json list;
  if (port > 0) {
    httplib::Client client("127.0.0.1", port);
    const auto answer = client.Get("/runs");
    if (answer) list = nlohmann::json::parse(answer->body, nullptr, false);
  }
  put("seen", "");
  command.join();
  EXPECT_EQ(finished.code, 0) << finished.err;
  ASSERT_EQ(list["runs"].size(), 1u) << list;
  EXPECT_EQ(list["runs"][0]["name"], "one");
  EXPECT_EQ(list["runs"][0]["state"], "finished");
  EXPECT_EQ(list["runs"][0]["points"], 4);
}

TEST_F(CliTest, WatchNeedsFolders) {
  EXPECT_THAT(failure_of(2, {"watch", "nowhere"}), HasSubstr("nowhere"));
  EXPECT_THAT(failure_of(2, {"watch", "tiny.json"}), HasSubstr("no such folder"));
  failure_of(2, {"watch"});
}

TEST_F(CliTest, CompareWatched) {
  const Finished finished =
      run({"compare", "tiny.json", "--data", "text.txt", "--out", "out", "--tokens", "2560",
           "--vocab", "0", "--contexts", "32", "--watch", "--watch-port", "0"});
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.err, HasSubstr("curves at http://127.0.0.1:"));
  EXPECT_THAT(finished.out, HasSubstr("Report: out/report.html"));
}

}  // namespace
}  // namespace pronghorn
