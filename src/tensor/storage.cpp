#include "tensor/storage.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "base/error.h"

namespace pronghorn {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t{1} << 21;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kReuseBlocks = false;  // let the sanitizer see every use after free
#else
constexpr bool kReuseBlocks = true;
#endif

// Rounds up to one of four sizes in each power of two: at most a quarter is wasted.
size_t size_class(size_t bytes) {
  if (bytes <= kCacheLine) return kCacheLine;
  const size_t step = std::max(kCacheLine, std::bit_floor(bytes - 1) / 4);
  return (bytes + step - 1) / step * step;
}

class Allocator {
 public:
  std::byte* allocate(size_t bytes) {
    const size_t size = size_class(bytes);
    std::lock_guard<std::mutex> lock(mutex_);
    in_use_ += static_cast<int64_t>(bytes);
    peak_ = std::max(peak_, in_use_);
    std::vector<void*>& blocks = free_[size];
    if (!blocks.empty()) {
      void* block = blocks.back();
      blocks.pop_back();
      return static_cast<std::byte*>(block);
    }
    const size_t alignment = size >= kHugePage ? kHugePage : kCacheLine;
    const size_t rounded = (size + alignment - 1) / alignment * alignment;
    void* block = std::aligned_alloc(alignment, rounded);
    if (block == nullptr) {
      in_use_ -= static_cast<int64_t>(bytes);
      throw Error("memory", fmt::format("cannot allocate {} bytes", bytes),
                  "use a smaller batch, context or model");
    }
    if (size >= kHugePage) madvise(block, rounded, MADV_HUGEPAGE);
    return static_cast<std::byte*>(block);
  }

  void release(std::byte* data, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    in_use_ -= static_cast<int64_t>(bytes);
    if (kReuseBlocks) {
      free_[size_class(bytes)].push_back(data);
    } else {
      std::free(data);
    }
  }

  void release_cached() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [size, blocks] : free_) {
      for (void* block : blocks) std::free(block);
      blocks.clear();
    }
  }

  MemoryUse use() {
    std::lock_guard<std::mutex> lock(mutex_);
    return {in_use_, peak_};
  }

  void reset_peak() {
    std::lock_guard<std::mutex> lock(mutex_);
    peak_ = in_use_;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<size_t, std::vector<void*>> free_;
  int64_t in_use_ = 0, peak_ = 0;
};

// Never destroyed: tensors with static lifetime may be released after it would have been.
Allocator& allocator() {
  static auto* instance = new Allocator;
  return *instance;
}

}  // namespace

Storage::Storage(size_t bytes) : data_(allocator().allocate(bytes)), bytes_(bytes) {}
Storage::~Storage() { allocator().release(data_, bytes_); }

MemoryUse memory_use() { return allocator().use(); }
void reset_memory_peak() { allocator().reset_peak(); }
void release_cached_memory() { allocator().release_cached(); }

int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace pronghorn
