// Memory that is closed to the host but for kernels and the functions of Memory, and a backend
// whose kernels open it: an operator that follows an address into it by itself dies of a signal.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "backend/watched_backend.h"
#include "tensor/memory.h"

namespace pronghorn::testing_support {

// One range of addresses, of which blocks are cut. Blocks that are released are given out again for
// the same size: closing a range takes as long as there are addresses that were ever used.
class GuardedArena {
 public:
  // Never destroyed: what pools keep comes back when the program ends.
  static GuardedArena& instance() {
    static auto* arena = new GuardedArena;
    return *arena;
  }

  std::byte* allocate(size_t bytes, size_t alignment) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::byte*>& free = free_[bytes];
    if (!free.empty() && reinterpret_cast<uintptr_t>(free.back()) % alignment == 0) {
      std::byte* block = free.back();
      free.pop_back();
      return block;
    }
    used_ = (used_ + alignment - 1) / alignment * alignment;
    if (used_ + bytes > kBytes) return nullptr;
    std::byte* block = begin_ + used_;
    used_ += bytes;
    sizes_[block] = bytes;
    return block;
  }
  void release(std::byte* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_[sizes_.at(block)].push_back(block);
  }
  bool holds(const std::byte* block) const { return block >= begin_ && block < begin_ + kBytes; }

  // Closed while somebody guards and nobody has access.
  void change(int guards, int accesses) {
    const std::lock_guard<std::mutex> lock(mutex_);
    guards_ += guards;
    accesses_ += accesses;
    const bool close = guards_ > 0 && accesses_ == 0;
    if (close == closed_) return;
    closed_ = close;
    if (mprotect(begin_, kBytes, close ? PROT_NONE : PROT_READ | PROT_WRITE) != 0) std::abort();
  }

 private:
  static constexpr size_t kBytes = size_t{1} << 32;

  GuardedArena()
      : begin_(static_cast<std::byte*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    if (begin_ == MAP_FAILED) std::abort();
  }

  std::mutex mutex_;
  std::byte* begin_;
  size_t used_ = 0;
  std::unordered_map<std::byte*, size_t> sizes_;
  std::unordered_map<size_t, std::vector<std::byte*>> free_;  // by size
  int guards_ = 0, accesses_ = 0;
  bool closed_ = false;
};

// Opens the memory as long as it lives.
class HostAccess {
 public:
  HostAccess() { GuardedArena::instance().change(0, 1); }
  ~HostAccess() { GuardedArena::instance().change(0, -1); }
  HostAccess(const HostAccess&) = delete;
  HostAccess& operator=(const HostAccess&) = delete;
};

class GuardedMemory final : public Memory {
 public:
  std::byte* allocate(size_t bytes, size_t alignment) override {
    return GuardedArena::instance().allocate(bytes, alignment);
  }
  void release(std::byte* block) override {
    if (GuardedArena::instance().holds(block)) {
      GuardedArena::instance().release(block);
    } else {
      Memory::release(block);
    }
  }
  void clear(std::byte* to, size_t bytes) override {
    const HostAccess access;
    Memory::clear(to, bytes);
  }
  void fill(StridedRows to, int64_t rows, int64_t columns, float value) override {
    const HostAccess access;
    Memory::fill(to, rows, columns, value);
  }
  void add(StridedRows from, StridedRows to, int64_t rows, int64_t columns) override {
    const HostAccess access;
    Memory::add(from, to, rows, columns);
  }
  void copy(const std::byte* from, int64_t from_stride, std::byte* to, int64_t to_stride,
            int64_t rows, int64_t row_bytes) override {
    const HostAccess access;
    Memory::copy(from, from_stride, to, to_stride, rows, row_bytes);
  }
  void copy(std::span<const RowCopy> copies) override {
    const HostAccess access;
    Memory::copy(copies);
  }
  void read(const void* from, void* to, size_t bytes) override {
    const HostAccess access;
    Memory::read(from, to, bytes);
  }
  void write(const void* from, void* to, size_t bytes) override {
    const HostAccess access;
    Memory::write(from, to, bytes);
  }
};

// Opens the memory for every kernel.
class KernelAccess final : public KernelWatcher {
 public:
  void begin(const KernelCall&) override { GuardedArena::instance().change(0, 1); }
  void end() override { GuardedArena::instance().change(0, -1); }
};

// Puts both in place for the rest of the program: what was allocated before stays open. Guard
// closes the memory as long as it lives.
inline void use_guarded_memory() {
  static GuardedMemory memory;
  static KernelAccess access;
  static const std::unique_ptr<Backend> guarded = make_watched_backend(backend(), access);
  static const bool once = (exchange_memory(memory), exchange_backend(*guarded), true);
  static_cast<void>(once);
}

class Guard {
 public:
  Guard() { GuardedArena::instance().change(1, 0); }
  ~Guard() { GuardedArena::instance().change(-1, 0); }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;
};

}  // namespace pronghorn::testing_support
