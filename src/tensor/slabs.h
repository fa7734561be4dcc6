// Memory of the host for blocks of medium size, on huge pages.
//
// Weights of small models and pages of journals are smaller than a huge page. On pages of 4 KB a
// step that reads all of them misses the translation caches for every page, and hardware
// prefetching ends at each: such blocks share slabs of huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_map>

namespace pronghorn {

class Slabs {
 public:
  // Whether blocks of so many bytes come from slabs.
  static bool takes(size_t bytes, size_t alignment);

  // A block on a cache line; null if the memory cannot be had.
  std::byte* allocate(size_t bytes);
  // Gives back a block of allocate(), and a slab with its last block; false if it is none.
  bool release(std::byte* block);

 private:
  struct Slab {
    size_t used = 0;     // bytes handed out, also those that came back
    int64_t blocks = 0;  // that are out
  };
  static uintptr_t base_of(const std::byte* block);

  std::mutex mutex_;
  std::unordered_map<uintptr_t, Slab> slabs_;  // by address
  uintptr_t current_ = 0;                      // the one that is filled; 0: none
};

}  // namespace pronghorn
