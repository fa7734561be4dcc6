// Memory: where the numbers of storages lie. What is not a kernel reaches them through this.
//
// There is one, that of the host. A device with memory of its own would be another, whose addresses
// the host cannot follow; tests have one that only kernels and these functions can open, which
// proves that operators ask for nothing else (tests/support/guarded_memory.h). Lists of addresses
// and of row indices that kernels are given are memory of the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace pronghorn {

// `bytes` bytes to copy; the two do not overlap.
struct RowCopy {
  const void* from = nullptr;
  void* to = nullptr;
  size_t bytes = 0;
};

// Rows of f32 that lie `stride` numbers apart.
struct StridedRows {
  float* data = nullptr;
  int64_t stride = 0;
};

// Functions run in the order in which they are called, also with kernels; read() returns when the
// host has the bytes.
class Memory {
 public:
  virtual ~Memory() = default;

  // A block; null if it cannot be had. alignment: a power of two.
  virtual std::byte* allocate(size_t bytes, size_t alignment);
  virtual void release(std::byte* block);

  virtual void clear(std::byte* to, size_t bytes);
  virtual void fill(StridedRows to, int64_t rows, int64_t columns, float value);
  // to += from.
  virtual void add(StridedRows from, StridedRows to, int64_t rows, int64_t columns);
  // Rows of `row_bytes` bytes that lie strides (in bytes) apart.
  virtual void copy(const std::byte* from, int64_t from_stride, std::byte* to, int64_t to_stride,
                    int64_t rows, int64_t row_bytes);
  // In this order: a later copy may read what an earlier one wrote.
  virtual void copy(std::span<const RowCopy> copies);

  // To and from memory of the host.
  virtual void read(const void* from, void* to, size_t bytes);
  virtual void write(const void* from, void* to, size_t bytes);
};

// The memory of this process.
Memory& memory();

// For tests: puts another in its place and returns the one before, which must outlive the blocks
// that it gave. Blocks that nobody uses are given back first.
Memory& exchange_memory(Memory& other);

}  // namespace pronghorn
