#include "tensor/storage.h"

#include <malloc.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "base/error.h"
#include "tensor/memory.h"
#include "tensor/pool.h"

namespace pronghorn {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t{1} << 21;

// One of up to four sizes in each power of two: at most a quarter is wasted.
struct SizeClass {
  size_t index, bytes;

  explicit SizeClass(size_t wanted) {
    const size_t last = std::max(wanted, size_t{1}) - 1;
    const size_t floor = std::max(kCacheLine, std::bit_floor(last));
    const size_t step = std::max(kCacheLine, floor / 4);
    const size_t steps = last < kCacheLine ? 0 : (last - floor) / step + 1;
    bytes = floor + steps * step;
    index = static_cast<size_t>(std::countr_zero(floor)) * 4 + steps;
  }
  static constexpr size_t kCount = 64 * 4 + 5;
};

// Where blocks come from: memory() for storages, the host for lists.
enum class Source { storages, lists };

class Allocator {
 public:
  explicit Allocator(Source source) : source_(source) {}

  std::byte* allocate(size_t bytes, Lifetime lifetime = Lifetime::step) {
    const SizeClass wanted(bytes);
    const bool reused = lifetime == Lifetime::step;
    const size_t size = reused ? wanted.bytes : bytes;
    std::lock_guard<std::mutex> lock(mutex_);
    in_use_ += static_cast<int64_t>(bytes);
    peak_ = std::max(peak_, in_use_);
    std::vector<void*>& blocks = free_[wanted.index];
    if (reused && !blocks.empty()) {
      void* block = blocks.back();
      blocks.pop_back();
      return static_cast<std::byte*>(block);
    }
    const size_t alignment = size >= kHugePage ? kHugePage : kCacheLine;
    const size_t rounded = (size + alignment - 1) / alignment * alignment;
    void* block = take(rounded, alignment);
    if (block == nullptr) {
      in_use_ -= static_cast<int64_t>(bytes);
      throw Error("memory", fmt::format("cannot allocate {} bytes", bytes),
                  "use a smaller batch, context or model");
    }
    if (size >= kHugePage) madvise(block, rounded, MADV_HUGEPAGE);
    return static_cast<std::byte*>(block);
  }

  void release(std::byte* data, size_t bytes, Lifetime lifetime = Lifetime::step) {
    std::lock_guard<std::mutex> lock(mutex_);
    in_use_ -= static_cast<int64_t>(bytes);
    if (kReuseBlocks && lifetime == Lifetime::step) {
      free_[SizeClass(bytes).index].push_back(data);
    } else {
      give_back(data);
    }
  }

  void release_cached() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (std::vector<void*>& blocks : free_) {
      for (void* block : blocks) give_back(block);
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
  void* take(size_t bytes, size_t alignment) {
    return source_ == Source::lists ? std::aligned_alloc(alignment, bytes)
                                    : memory().allocate(bytes, alignment);
  }
  void give_back(void* block) {
    if (source_ == Source::lists) {
      std::free(block);
    } else {
      memory().release(static_cast<std::byte*>(block));
    }
  }

  Source source_;
  std::mutex mutex_;
  std::array<std::vector<void*>, SizeClass::kCount> free_;
  int64_t in_use_ = 0, peak_ = 0;
};

// Never destroyed: tensors with static lifetime may be released after it would have been.
Allocator& allocator() {
  static auto* instance = new Allocator(Source::storages);
  return *instance;
}

Allocator& list_allocator() {
  static auto* instance = new Allocator(Source::lists);
  return *instance;
}

}  // namespace

std::byte* detail::allocate_block(size_t bytes) { return list_allocator().allocate(bytes); }
void detail::release_block(std::byte* data, size_t bytes) { list_allocator().release(data, bytes); }

Storage::Storage(size_t bytes, Lifetime lifetime)
    : data_(allocator().allocate(bytes, lifetime)), bytes_(bytes), lifetime_(lifetime) {}
Storage::~Storage() { allocator().release(data_, bytes_, lifetime_); }

std::shared_ptr<Storage> make_storage(size_t bytes) { return make_pooled<Storage>(bytes); }

MemoryUse memory_use() { return allocator().use(); }
void reset_memory_peak() { allocator().reset_peak(); }
void release_cached_memory() {
  allocator().release_cached();
  list_allocator().release_cached();
#ifdef __GLIBC__
  malloc_trim(0);  // the heap keeps what was freed below its last block
#endif
}

int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace pronghorn
