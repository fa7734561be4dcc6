// Files that are written whole or not at all, whatever ends the process that writes them.
#include "base/files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "support/folder.h"

namespace pronghorn {
namespace {

namespace fs = std::filesystem;
using testing::UnorderedElementsAre;

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& item : fs::directory_iterator(directory)) {
    names.push_back(item.path().filename().string());
  }
  return names;
}

// How a child process that runs `body` ends, as of waitpid(). What it says of itself is in its exit
// code: it leaves without the ends of this program.
int status_of_child(const std::function<void()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

// A process that is gone.
pid_t dead_process() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}

TEST(AtomicFile, SignalsLeaveNothingHalfWritten) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    const testing_support::Folder folder;
    write_file(folder / "kept", "before");
    const int status = status_of_child([&] {
      ::signal(signal, SIG_DFL);  // whatever started the tests
      remove_partial_files_at_signals();
      write_file(folder / "done", "whole");
      AtomicFile first(folder / "kept"), second(folder / "new");
      { const AtomicFile dropped(folder / "dropped"); }
      first.write("after");
      first.finish();
      second.write("half");
      ::raise(signal);
    });
    ASSERT_TRUE(WIFSIGNALED(status)) << signal;
    EXPECT_EQ(WTERMSIG(status), signal);
    EXPECT_THAT(names_in(folder.path()), UnorderedElementsAre("kept", "done")) << signal;
    EXPECT_EQ(read_file(folder / "kept"), "before");
  }
}

TEST(AtomicFile, SignalsThatAreIgnoredStayIgnored) {
  const testing_support::Folder folder;
  const int status = status_of_child([&] {
    ::signal(SIGHUP, SIG_IGN);  // nohup
    remove_partial_files_at_signals();
    AtomicFile file(folder / "new");
    file.write("whole");
    ::raise(SIGHUP);
    file.commit();
  });
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(read_file(folder / "new"), "whole");
}

TEST(AtomicFile, WhatKilledProcessesLeftIsRemoved) {
  const testing_support::Folder folder;
  const std::string dead = "." + std::to_string(dead_process()) + ".partial";
  const std::string alive = "." + std::to_string(::getpid()) + ".partial";
  fs::create_directory(folder / "below");
  for (const std::string& name :
       {"m.gguf" + dead, "m-00001-of-00002.gguf" + dead, "m.gguf" + alive, "m2.gguf" + dead,
        std::string("m.x.partial"), std::string("m.partial"), "below/m.gguf" + dead}) {
    write_file(folder / name, "half");
  }
  remove_abandoned_versions(folder / "m.gguf");
  EXPECT_THAT(names_in(folder.path()), UnorderedElementsAre("m.gguf" + alive, "m2.gguf" + dead,
                                                            "m.x.partial", "m.partial", "below"));
  EXPECT_TRUE(fs::exists(folder / ("below/m.gguf" + dead)));
  remove_abandoned_files(folder.path(), false);
  EXPECT_FALSE(fs::exists(folder / ("m2.gguf" + dead)));
  EXPECT_TRUE(fs::exists(folder / ("below/m.gguf" + dead)));
  remove_abandoned_files(folder.path());
  EXPECT_THAT(names_in(folder.path()),
              UnorderedElementsAre("m.gguf" + alive, "m.x.partial", "m.partial", "below"));
  EXPECT_FALSE(fs::exists(folder / ("below/m.gguf" + dead)));
  remove_abandoned_files(folder / "nothing");
  remove_abandoned_versions(folder / "nothing/m.gguf");
}

}  // namespace
}  // namespace pronghorn
