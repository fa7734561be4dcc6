#include "backend/cpu/scratch.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "base/error.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

constexpr size_t kCacheLine = 64;

// Blocks are filled in order and never move while a piece of them is out.
struct Buffer {
  std::vector<std::unique_ptr<Storage>> blocks;
  size_t block = 0, used = 0;      // the block that is being filled, and its bytes in use
  size_t least = size_t{1} << 14;  // bytes of the next block

  std::byte* take(size_t bytes) {
    for (; block < blocks.size(); ++block, used = 0) {
      if (blocks[block]->bytes() - used < bytes) continue;
      std::byte* piece = blocks[block]->data() + used;
      used += bytes;
      return piece;
    }
    blocks.push_back(std::make_unique<Storage>(std::max(bytes, least)));
    used = bytes;
    return blocks.back()->data();
  }

  // Once nothing is taken: from now on one block of the size that all of them had.
  void join() {
    if (blocks.size() < 2) return;
    least = 0;
    for (const auto& part : blocks) least += part->bytes();
    blocks.clear();
  }
};

thread_local Buffer buffer;

}  // namespace

Scratch::Scratch() : block_(buffer.block), used_(buffer.used) {}

Scratch::~Scratch() {
  buffer.block = block_;
  buffer.used = used_;
  if (block_ == 0 && used_ == 0) buffer.join();
}

float* Scratch::take(int64_t count) {
  constexpr int64_t kMost = int64_t{1} << 40;
  require(count >= 0 && count <= kMost, "scratch", "cannot take {} floats", count);
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  return reinterpret_cast<float*>(buffer.take((bytes + kCacheLine - 1) / kCacheLine * kCacheLine));
}

}  // namespace pronghorn
