// A file in memory, so that the disk does not set the pace of a fuzz target.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace pronghorn {

class MemoryFile {
 public:
  MemoryFile() : descriptor_(::memfd_create("fuzz", 0)) {
    path_ = "/proc/self/fd/" + std::to_string(descriptor_);
  }
  // The path of a file with these bytes, until the next call.
  const std::filesystem::path& hold(const uint8_t* data, size_t size) {
    if (::ftruncate(descriptor_, 0) != 0 ||
        ::pwrite(descriptor_, data, size, 0) != static_cast<ssize_t>(size)) {
      __builtin_trap();
    }
    return path_;
  }

 private:
  int descriptor_;
  std::filesystem::path path_;
};

}  // namespace pronghorn
