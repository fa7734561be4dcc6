#include "tensor/pool.h"

#include <gtest/gtest.h>

#include <array>
#include <fstream>
#include <thread>
#include <vector>

namespace pronghorn {
namespace {

// Pages of memory that the process has.
int64_t resident_pages() {
  std::ifstream file("/proc/self/statm");
  int64_t all = 0, resident = 0;
  file >> all >> resident;
  return resident;
}

TEST(PooledAllocator, GivesBackWhatAThreadKeepsWhenItEnds) {
  if (!kReuseBlocks) GTEST_SKIP() << "sanitizers keep what is freed";
  using Block = std::array<char, 8192>;
  constexpr int kThreads = 100, kBlocks = 100;
  const auto use = [] {
    PooledAllocator<Block> allocator;
    std::vector<Block*> blocks;
    for (int i = 0; i < kBlocks; ++i) blocks.push_back(allocator.allocate(1));
    for (Block* block : blocks) {
      block->fill(1);
      allocator.deallocate(block, 1);
    }
  };
  std::thread(use).join();
  const int64_t before = resident_pages();
  for (int i = 0; i < kThreads; ++i) std::thread(use).join();
  // Two pages a block: all of them would be 20,000.
  EXPECT_LT(resident_pages() - before, kThreads * kBlocks / 4);
}

}  // namespace
}  // namespace pronghorn
