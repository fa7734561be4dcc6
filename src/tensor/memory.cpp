#include "tensor/memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/threads.h"
#include "tensor/slabs.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

// memcpy must not be given a null pointer, not even for no bytes.
void copy_bytes(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

constexpr int64_t kGrain = 1 << 15;  // numbers: enough to outweigh a fork and join

int64_t row_grain(int64_t numbers) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, numbers));
}

Memory* current = nullptr;

// Never destroyed, as the host's memory.
Slabs& slabs() {
  static auto* instance = new Slabs;
  return *instance;
}

}  // namespace

std::byte* Memory::allocate(size_t bytes, size_t alignment) {
  if (Slabs::takes(bytes, alignment)) return slabs().allocate(bytes);
  return static_cast<std::byte*>(std::aligned_alloc(alignment, bytes));
}

void Memory::release(std::byte* block) {
  if (!slabs().release(block)) std::free(block);
}

void Memory::clear(std::byte* to, size_t bytes) {
  constexpr int64_t kBytes = kGrain * int64_t{sizeof(float)};
  parallel_for(static_cast<int64_t>(bytes), kBytes, [&](int64_t begin, int64_t end) {
    std::memset(to + begin, 0, static_cast<size_t>(end - begin));
  });
}

void Memory::fill(StridedRows to, int64_t rows, int64_t columns, float value) {
  parallel_for(rows, row_grain(columns), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::fill_n(to.data + i * to.stride, columns, value);
  });
}

void Memory::add(StridedRows from, StridedRows to, int64_t rows, int64_t columns) {
  parallel_for(rows, row_grain(columns), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* source = from.data + i * from.stride;
      float* target = to.data + i * to.stride;
      for (int64_t j = 0; j < columns; ++j) target[j] += source[j];
    }
  });
}

void Memory::copy(const std::byte* from, int64_t from_stride, std::byte* to, int64_t to_stride,
                  int64_t rows, int64_t row_bytes) {
  const int64_t numbers = row_bytes / int64_t{sizeof(float)};
  parallel_for(rows, row_grain(numbers), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      copy_bytes(to + i * to_stride, from + i * from_stride, static_cast<size_t>(row_bytes));
    }
  });
}

void Memory::copy(std::span<const RowCopy> copies) {
  for (const RowCopy& each : copies) copy_bytes(each.to, each.from, each.bytes);
}

void Memory::read(const void* from, void* to, size_t bytes) { copy_bytes(to, from, bytes); }
void Memory::write(const void* from, void* to, size_t bytes) { copy_bytes(to, from, bytes); }

// Never destroyed: storages with static lifetime may be released after it would have been.
Memory& memory() {
  static auto* host = new Memory;
  return current != nullptr ? *current : *host;
}

Memory& exchange_memory(Memory& other) {
  release_cached_memory();
  Memory& before = memory();
  current = &other;
  return before;
}

}  // namespace pronghorn
