// Runs as the page sees them: logs that grow, end in the middle of a line or are begun again.
#include "lab/run_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <optional>
#include <thread>

#include "base/directory_lock.h"
#include "base/files.h"
#include "formats/safetensors.h"
#include "support/folder.h"

namespace pronghorn::lab {
namespace {

namespace fs = std::filesystem;
using testing_support::Folder;

std::string line(int64_t step, double loss = 2) {
  return fmt::format(
      R"({{"step":{},"tokens":{},"loss":{},"lr":0.001,"gradient_norm":1.5,"seconds":{},)"
      R"("tokens_per_second":200}})"
      "\n",
      step, 100 * step, loss, 0.5 * static_cast<double>(step));
}

void append(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::app) << text;
}

// The state of a run with a budget; its tensors are nobody's business here.
void write_state(const fs::path& folder, const std::string& budget) {
  write_safetensors(
      folder / "training_state.safetensors", {},
      {{"pronghorn_state", "{}"},
       {"pronghorn_identity",
        R"({"budget": )" + budget + R"(, "model configuration": {"pattern": "3m a"}})"}});
}

RunStatus only(RunWatch& watch) {
  const RunWatch::List list = watch.list();
  EXPECT_EQ(list.runs.size(), 1u);
  return list.runs.empty() ? RunStatus() : list.runs.front();
}

TEST(RunWatch, FollowsALogThatGrows) {
  const Folder folder;
  const fs::path log = folder / "log.jsonl";
  append(log, line(1, 5) + line(2, 4) + R"({"step":3,"tok)");
  RunWatch watch({folder.path()});
  RunStatus run = only(watch);
  EXPECT_EQ(run.name, folder.path().filename().string());
  EXPECT_EQ(run.points, 2);
  EXPECT_EQ(run.last->step, 2);
  EXPECT_EQ(run.last->loss, 4);
  // The rest of the line, what is none, and one with more in it.
  append(log, R"(ens":300,"loss":3})"
              "\n"
              "nonsense\n[1]\n\n"
              R"({"step":4,"loss":2,"held_out_bits_per_byte":1.25,)"
              R"("expert_shares":{"least":0.5,"most":1.75}})"
              "\n");
  run = only(watch);
  EXPECT_EQ(run.points, 4);
  EXPECT_EQ(run.last->step, 4);
  const auto piece = watch.curve(run.name, run.version, 2);
  ASSERT_TRUE(piece);
  EXPECT_EQ(piece->from, 2);
  ASSERT_EQ(piece->points.size(), 2u);
  EXPECT_EQ(piece->points[0].step, 3);
  EXPECT_EQ(piece->points[0].tokens, 300);
  EXPECT_EQ(piece->points[0].loss, 3);
  EXPECT_EQ(piece->points[1].held_out_bits_per_byte, 1.25);
  EXPECT_EQ(piece->points[1].expert_shares->most, 1.75);
  EXPECT_FALSE(watch.curve("another", 0, 0));
}

// A resumed run writes a new log without the steps that it repeats.
TEST(RunWatch, ReadsANewLogFromItsBeginning) {
  const Folder folder;
  const fs::path log = folder / "log.jsonl";
  append(log, line(1, 5) + line(2, 4) + line(3, 3));
  RunWatch watch({folder.path()});
  const RunStatus before = only(watch);
  write_file(log, line(1, 5) + line(2, 9) + line(3, 8) + line(4, 7));
  const RunStatus after = only(watch);
  EXPECT_NE(after.version, before.version);
  EXPECT_EQ(after.points, 4);
  const auto piece = watch.curve(after.name, before.version, 3);
  EXPECT_EQ(piece->from, 0);
  ASSERT_EQ(piece->points.size(), 4u);
  EXPECT_EQ(piece->points[1].loss, 9);
}

TEST(RunWatch, LongCurvesKeepTheirMeans) {
  Curve curve;
  constexpr int64_t kSteps = 3 * int64_t{Curve::kMostPoints};
  for (int64_t step = 1; step <= kSteps; ++step) {
    TrainLogLine one;
    one.step = step;
    one.loss = static_cast<double>(step);
    if (step == 1000) one.held_out_bits_per_byte = 1.5;
    one.expert_shares = {step == 2000 ? 0.25 : 0.5, step == 2001 ? 3.0 : 2.0};
    curve.add(one);
  }
  EXPECT_GT(curve.version(), 0);
  // 3 x 2048 steps: a point for two steps until there are 2048 points, then one for four.
  ASSERT_EQ(curve.points().size(), static_cast<size_t>(kSteps / 4));
  int64_t scores = 0;
  double least = 1, most = 1;
  for (size_t i = 0; i < curve.points().size(); ++i) {
    const WatchPoint& point = curve.points()[i];
    const auto last = static_cast<int64_t>(4 * (i + 1));
    ASSERT_EQ(point.step, last);
    // The mean of four whole numbers in a row; whole halves and their sums are exact.
    ASSERT_DOUBLE_EQ(point.loss, static_cast<double>(last) - 1.5);
    scores += point.held_out_bits_per_byte ? 1 : 0;
    least = std::min(least, point.expert_shares->least);
    most = std::max(most, point.expert_shares->most);
  }
  EXPECT_EQ(scores, 1);
  EXPECT_EQ(least, 0.25);
  EXPECT_EQ(most, 3);
}

TEST(RunWatch, SaysHowARunIs) {
  const Folder folder;
  RunWatch watch({folder.path()});
  EXPECT_TRUE(watch.list().runs.empty());
  write_state(folder, R"({"steps": 4})");
  {
    const DirectoryLock lock(folder);
    EXPECT_EQ(only(watch).state, RunState::waiting);
    append(folder / "log.jsonl", line(1));
    const RunStatus run = only(watch);
    EXPECT_EQ(run.state, RunState::running);
    EXPECT_EQ(run.share, 0.25);
    EXPECT_EQ(run.pattern, "3m a");
  }
  EXPECT_EQ(only(watch).state, RunState::stopped);
  // A process that is killed leaves its lock.
  const pid_t child = ::fork();
  if (child == 0) {
    new DirectoryLock(folder);
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(only(watch).state, RunState::died);
  append(folder / "log.jsonl", line(2) + line(3) + line(4));
  EXPECT_EQ(only(watch).state, RunState::finished);
  // A larger budget: the run goes on.
  fs::remove(folder / ".lock");
  write_state(folder, R"({"steps": 400})");
  EXPECT_EQ(only(watch).state, RunState::stopped);
}

// Who looks holds the lock for a moment; who begins waits for that.
TEST(RunWatch, LookingKeepsNoRunFromBeginning) {
  const Folder folder;
  std::atomic<bool> ended{false};
  std::thread looking([&] {
    while (!ended) directory_use(folder);
  });
  for (int i = 0; i < 500; ++i) {
    EXPECT_NO_THROW(DirectoryLock{folder});
  }
  ended = true;
  looking.join();
  EXPECT_EQ(directory_use(folder), DirectoryUse::free);
  const DirectoryLock lock(folder);
  EXPECT_EQ(directory_use(folder), DirectoryUse::held);
}

TEST(RunWatch, FindsRunsBelowAFolder) {
  const Folder folder;
  for (const char* name : {"out/b", "out/a", "out/data", "elsewhere/a"}) {
    fs::create_directories(folder / name);
  }
  for (const char* name : {"out/b", "out/a", "elsewhere/a"}) {
    append(folder / name / "log.jsonl", line(1));
  }
  RunWatch one({folder / "out"});
  std::vector<std::string> names;
  for (const RunStatus& run : one.list().runs) names.push_back(run.name);
  EXPECT_EQ(names, (std::vector<std::string>{"a", "b"}));
  // The same name twice, and the same run twice.
  RunWatch two({folder / "out", folder / "elsewhere/a", folder / "out/a"});
  names.clear();
  for (const RunStatus& run : two.list().runs) names.push_back(run.name);
  EXPECT_EQ(names, (std::vector<std::string>{(folder / "out/a").string(), "b",
                                             (folder / "elsewhere/a").string()}));
  // One that comes later.
  fs::create_directories(folder / "out/c");
  append(folder / "out/c/log.jsonl", line(1));
  EXPECT_EQ(one.list().runs.size(), 3u);
}

TEST(RunWatch, HostileFilesAreNoError) {
  const Folder folder;
  append(folder / "log.jsonl", R"({"step":1e300,"tokens":"many"})"
                               "\n" +
                                   std::string(size_t{3} << 20, 'x') + "\n" +
                                   R"({"step":2,"expert_shares":[1],"layer_losses":{"a":"b"}})" +
                                   "\n");
  append(folder / "training_state.safetensors", "not a state");
  RunWatch watch({folder.path()});
  const RunStatus run = only(watch);
  EXPECT_EQ(run.points, 1);
  EXPECT_EQ(run.last->step, 2);
  EXPECT_FALSE(run.share);
  fs::remove(folder / "log.jsonl");
  fs::create_directory(folder / "log.jsonl");
  EXPECT_EQ(watch.list().runs.size(), 1u);
}

}  // namespace
}  // namespace pronghorn::lab
