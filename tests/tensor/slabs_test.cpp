#include "tensor/slabs.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "tensor/pool.h"

namespace pronghorn {
namespace {

constexpr size_t kKilobyte = 1024, kHugePage = 2048 * kKilobyte;

TEST(Slabs, TakeBlocksBelowAHugePage) {
  EXPECT_FALSE(Slabs::takes(kKilobyte, 64));
  EXPECT_FALSE(Slabs::takes(kHugePage, 64));
  EXPECT_FALSE(Slabs::takes(100 * kKilobyte, 4096));
  EXPECT_EQ(Slabs::takes(100 * kKilobyte, 64), kReuseBlocks);
}

// Blocks of many sizes that come and go at random never overlap: each keeps the byte it is full of.
TEST(Slabs, BlocksAreApart) {
  Slabs slabs;
  struct Block {
    std::byte* data;
    size_t bytes;
    int fill;
  };
  std::vector<Block> blocks;
  std::mt19937 random(7);
  for (int step = 0; step < 400; ++step) {
    if (blocks.size() < 20 || random() % 2 == 0) {
      const size_t bytes = 16 * kKilobyte + random() % (kHugePage - 16 * kKilobyte);
      std::byte* data = slabs.allocate(bytes);
      ASSERT_NE(data, nullptr);
      ASSERT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u);
      std::memset(data, step & 255, bytes);
      blocks.push_back({data, bytes, step & 255});
    } else {
      const size_t place = random() % blocks.size();
      const Block block = blocks[place];
      for (size_t i = 0; i < block.bytes; i += 101) {
        ASSERT_EQ(std::to_integer<int>(block.data[i]), block.fill);
      }
      ASSERT_EQ(std::to_integer<int>(block.data[block.bytes - 1]), block.fill);
      ASSERT_TRUE(slabs.release(block.data));
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(place));
    }
  }
  for (const Block& block : blocks) ASSERT_TRUE(slabs.release(block.data));
}

TEST(Slabs, KnowWhatIsTheirs) {
  Slabs slabs;
  std::byte other[64];
  EXPECT_FALSE(slabs.release(other));
  std::byte* block = slabs.allocate(100 * kKilobyte);
  EXPECT_TRUE(slabs.release(block));
  EXPECT_FALSE(slabs.release(block));  // the slab went with its last block
}

}  // namespace
}  // namespace pronghorn
