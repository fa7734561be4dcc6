#include "base/directory_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/files.h"

namespace pronghorn {
namespace {

constexpr const char* kLockFile = ".lock";

// Whether the file under this path is still the one that was opened: its holder removes it.
bool is_there(const std::filesystem::path& path, int descriptor) {
  struct stat opened {
  }, named{};
  return ::fstat(descriptor, &opened) == 0 && ::stat(path.c_str(), &named) == 0 &&
         opened.st_ino == named.st_ino && opened.st_dev == named.st_dev;
}

// directory_use() holds a lock for a moment, which is waited for; errno is EWOULDBLOCK if another
// run does.
bool lock(int descriptor) {
  constexpr int kTries = 20;
  for (int i = 0; i < kTries; ++i) {
    if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) return true;
    if (errno != EWOULDBLOCK) return false;
    ::usleep(5000);
  }
  errno = EWOULDBLOCK;
  return false;
}

}  // namespace

DirectoryLock::DirectoryLock(const std::filesystem::path& directory)
    : path_(directory / kLockFile) {
  make_directories(directory);
  while (true) {
    descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (descriptor_ < 0) {
      throw Error(path_.string(), fmt::format("cannot write: {}", std::strerror(errno)),
                  "check the permissions");
    }
    const bool locked = lock(descriptor_);
    if (!locked && errno == EWOULDBLOCK) {
      ::close(descriptor_);
      throw Error(directory.string(), "another run is writing to this directory",
                  "wait for its end, or choose another directory");
    }
    if (!locked || is_there(path_, descriptor_)) return;
    ::close(descriptor_);  // its holder was just leaving
  }
}

DirectoryLock::~DirectoryLock() {
  if (is_there(path_, descriptor_)) ::unlink(path_.c_str());
  ::close(descriptor_);
}

DirectoryUse directory_use(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / kLockFile;
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (descriptor < 0) return DirectoryUse::free;
  const bool locked = ::flock(descriptor, LOCK_SH | LOCK_NB) == 0;
  const bool held = !locked && errno == EWOULDBLOCK;
  const bool there = is_there(path, descriptor);  // else its holder has just left
  ::close(descriptor);
  if (held) return DirectoryUse::held;
  return locked && there ? DirectoryUse::abandoned : DirectoryUse::free;
}

}  // namespace pronghorn
