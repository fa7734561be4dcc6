// One process at a time in a directory that a program writes to.
#pragma once

#include <filesystem>

namespace pronghorn {

// Held from construction to destruction, and no longer than its process lives, however that ends.
// On file systems without locks it holds nothing.
class DirectoryLock {
 public:
  // Creates the directory if it is not there. Throws Error if another process, or another lock of
  // this one, holds it.
  explicit DirectoryLock(const std::filesystem::path& directory);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

// Whether a process writes to a directory. free: none does, or its file system cannot tell;
// abandoned: one did, and was killed.
enum class DirectoryUse { free, held, abandoned };
DirectoryUse directory_use(const std::filesystem::path& directory);

}  // namespace pronghorn
