#include "base/directory_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <optional>

#include "base/files.h"
#include "support/errors.h"
#include "support/folder.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;

TEST(DirectoryLock, IsHeldByOneAtATime) {
  const Folder folder;
  const std::filesystem::path place = folder / "new/folder";
  std::optional<DirectoryLock> first(place);
  EXPECT_THAT(error_of([&] { DirectoryLock second(place); }), HasSubstr("another run"));
  DirectoryLock elsewhere(folder / "other");
  first.reset();
  EXPECT_TRUE(std::filesystem::is_empty(place));
  DirectoryLock second(place);
}

TEST(Files, PipesAndDevicesAreNoFiles) {
  const auto start = std::chrono::steady_clock::now();
  const Folder folder;
  const std::filesystem::path pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(error_of([&] { read_file(pipe); }), HasSubstr("is a pipe, not a file"));
  EXPECT_THAT(error_of([&] { MappedFile file(pipe); }), HasSubstr("is a pipe, not a file"));
  EXPECT_THAT(error_of([&] { write_file(pipe, "x"); }), HasSubstr("is a pipe, not a file"));
  EXPECT_THAT(error_of([&] { read_file("/dev/zero"); }), HasSubstr("is a device, not a file"));
  EXPECT_THAT(error_of([&] { MappedFile file("/dev/null"); }), HasSubstr("is a device"));
  EXPECT_THAT(error_of([&] { write_file("/dev/null", "x"); }), HasSubstr("is a device"));
  EXPECT_THAT(error_of([&] { read_file(folder.path()); }), HasSubstr("is a directory"));
  EXPECT_THAT(error_of([&] { write_file(folder.path(), "x"); }), HasSubstr("is a directory"));
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
  EXPECT_FALSE(read_file("/proc/self/status").empty());  // a file without a size
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

}  // namespace
}  // namespace pronghorn
