#include "tensor/slabs.h"

#include <sys/mman.h>

#include <cstdlib>

#include "tensor/pool.h"

namespace pronghorn {
namespace {

constexpr size_t kCacheLine = 64, kHugePage = size_t{1} << 21;
// Aligned to its size, so that the slab of a block is found by its address.
constexpr size_t kSlab = 4 * kHugePage;
constexpr size_t kLeast = size_t{1} << 14;
// Between blocks: those of equal sizes would all begin at the same place of a page, and loads that
// follow stores at such distances wait for them.
constexpr size_t kGap = 5 * kCacheLine;

}  // namespace

bool Slabs::takes(size_t bytes, size_t alignment) {
  return kReuseBlocks && bytes >= kLeast && bytes < kHugePage && alignment <= kCacheLine;
}

uintptr_t Slabs::base_of(const std::byte* block) {
  return reinterpret_cast<uintptr_t>(block) / kSlab * kSlab;
}

std::byte* Slabs::allocate(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t size = (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
  if (current_ == 0 || slabs_[current_].used + size > kSlab) {
    void* memory = std::aligned_alloc(kSlab, kSlab);
    if (memory == nullptr) return nullptr;
    madvise(memory, kSlab, MADV_HUGEPAGE);
    current_ = reinterpret_cast<uintptr_t>(memory);
    slabs_[current_] = {};
  }
  Slab& slab = slabs_[current_];
  auto* block = reinterpret_cast<std::byte*>(current_ + slab.used);
  slab.used += size + kGap;
  ++slab.blocks;
  return block;
}

bool Slabs::release(std::byte* block) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = slabs_.find(base_of(block));
  if (found == slabs_.end()) return false;
  if (--found->second.blocks > 0) return true;
  if (found->first == current_) current_ = 0;
  std::free(reinterpret_cast<void*>(found->first));
  slabs_.erase(found);
  return true;
}

}  // namespace pronghorn
