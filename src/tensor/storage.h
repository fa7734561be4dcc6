// Memory of tensors: blocks from a caching allocator, with the bytes in use counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace pronghorn {

// How long a block is wanted.
enum class Lifetime : uint8_t {
  step,  // it is rounded up, kept when freed and handed out again: a training step allocates
         // nothing after the first
  model  // weights: it has its bytes alone, and goes back to the system
};

// One block of memory, aligned to a cache line (to 2 MB, on huge pages, from 2 MB up).
class Storage {
 public:
  // Contents are undefined. Throws Error when the memory cannot be had.
  explicit Storage(size_t bytes, Lifetime lifetime = Lifetime::step);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_;
  size_t bytes_;
  Lifetime lifetime_;
};

// An allocator of such blocks, in memory of the host, for lists that come and go with every
// forward.
template <typename T>
class BlockAllocator {
 public:
  using value_type = T;

  BlockAllocator() = default;
  template <typename U>
  BlockAllocator(const BlockAllocator<U>&) {}

  T* allocate(size_t count);
  void deallocate(T* data, size_t count);

  template <typename U>
  bool operator==(const BlockAllocator<U>&) const {
    return true;
  }
};

template <typename T>
using PooledVector = std::vector<T, BlockAllocator<T>>;

namespace detail {
std::byte* allocate_block(size_t bytes);
void release_block(std::byte* data, size_t bytes);
}  // namespace detail

template <typename T>
T* BlockAllocator<T>::allocate(size_t count) {
  return reinterpret_cast<T*>(detail::allocate_block(count * sizeof(T)));
}

template <typename T>
void BlockAllocator<T>::deallocate(T* data, size_t count) {
  detail::release_block(reinterpret_cast<std::byte*>(data), count * sizeof(T));
}

// A block that several owners share. Throws Error when the memory cannot be had.
std::shared_ptr<Storage> make_storage(size_t bytes);

struct MemoryUse {
  int64_t bytes = 0;  // held by live storages now, lists not counted
  int64_t peak = 0;   // largest value of `bytes` since the last reset_memory_peak()
};

MemoryUse memory_use();
void reset_memory_peak();

// Gives cached free blocks, and what the heap keeps of freed memory, back to the system.
void release_cached_memory();

// Largest resident set of the process so far, in bytes.
int64_t peak_resident_bytes();

}  // namespace pronghorn
