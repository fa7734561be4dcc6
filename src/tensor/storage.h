// Memory of tensors: blocks from a caching allocator, with the bytes in use counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace pronghorn {

// One block of memory, aligned to a cache line (to 2 MB, on huge pages, from 2 MB up). Freed blocks
// are kept and handed out again, so that a training step allocates nothing after the first.
class Storage {
 public:
  // Contents are undefined. Throws Error when the memory cannot be had.
  explicit Storage(size_t bytes);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_;
  size_t bytes_;
};

// A block that several owners share. Throws Error when the memory cannot be had.
std::shared_ptr<Storage> make_storage(size_t bytes);

struct MemoryUse {
  int64_t bytes = 0;  // held by live storages now
  int64_t peak = 0;   // largest value of `bytes` since the last reset_memory_peak()
};

MemoryUse memory_use();
void reset_memory_peak();

// Gives cached free blocks back to the system.
void release_cached_memory();

// Largest resident set of the process so far, in bytes.
int64_t peak_resident_bytes();

}  // namespace pronghorn
