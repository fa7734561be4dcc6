// Buffers of the calling thread for the dense matrix products.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "base/error.h"

namespace pronghorn {

enum class MatmulBuffer { rows, left, right, result };

// A buffer of `count` 4-byte steps, aligned to a cache line, that grows to what it is asked for and
// stays until the thread asks for the same one again.
inline uint32_t* matmul_scratch(MatmulBuffer which, int64_t count) {
  struct Free {
    void operator()(uint32_t* data) const { std::free(data); }
  };
  struct Buffer {
    std::unique_ptr<uint32_t, Free> data;
    int64_t capacity = 0;
  };
  static thread_local std::array<Buffer, 4> buffers;
  Buffer& buffer = buffers[static_cast<size_t>(which)];
  if (buffer.capacity < count) {
    constexpr int64_t kUnit = 1024;
    buffer.capacity = (count + kUnit - 1) / kUnit * kUnit;
    buffer.data.reset(static_cast<uint32_t*>(
        std::aligned_alloc(64, static_cast<size_t>(buffer.capacity) * sizeof(uint32_t))));
    require(buffer.data != nullptr, "memory", "cannot allocate {} numbers", buffer.capacity);
  }
  return buffer.data.get();
}

}  // namespace pronghorn
