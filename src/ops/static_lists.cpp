#include "ops/static_lists.h"

#include <algorithm>

#include "backend/attention.h"
#include "base/error.h"
#include "base/random.h"
#include "ops/key_blocks.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "static lists";

// `count` different numbers below `bound` > count: Floyd's algorithm (Bentley, Communications of
// the ACM 30(9), 1987).
void draw(Random& random, int64_t bound, int64_t count, int64_t offset,
          std::vector<int32_t>& blocks) {
  const auto begin = std::ssize(blocks);
  for (int64_t i = bound - count; i < bound; ++i) {
    const auto drawn = static_cast<int32_t>(
        offset + static_cast<int64_t>(random.below(static_cast<uint64_t>(i) + 1)));
    const bool is_there = std::find(blocks.begin() + begin, blocks.end(), drawn) != blocks.end();
    blocks.push_back(is_there ? static_cast<int32_t>(offset + i) : drawn);
  }
}

void check(const StaticPattern& pattern, const CheckedBatch& batch) {
  const bool tiles = pattern.block > 0 &&
                     (pattern.block % kAttentionTile == 0 || kAttentionTile % pattern.block == 0);
  const auto is_one = [](int64_t dilation) { return dilation == 1; };
  require(tiles && pattern.lists() > 0 && pattern.window > 0 && pattern.first >= 0 &&
              pattern.random >= 0 && std::ranges::min(pattern.dilations) > 0 &&
              (pattern.random == 0 || std::ranges::all_of(pattern.dilations, is_one)),
          kWhere, "{} lists of {}, {} and {} blocks of {}", pattern.lists(), pattern.window,
          pattern.first, pattern.random, pattern.block);
  for (const Segment& segment : batch.segments()) {
    require(segment.mask == Mask::causal, kWhere,
            "rows that see later ones, where earlier keys are listed");
  }
}

// The block of each row: its index in its sequence, in a tree that of a chain of its ancestors.
std::vector<int64_t> blocks_of_rows(const CheckedBatch& batch, JournalSlot slot, int64_t block) {
  std::vector<int64_t> own(static_cast<size_t>(batch.rows()));
  for (const Segment& segment : batch.segments()) {
    const int64_t before =
        segment.state == nullptr ? 0 : segment.state->journal(slot.layer, slot.index).length();
    for (int64_t i = 0; i < segment.length; ++i) {
      own[static_cast<size_t>(segment.first_row + i)] =
          index_in_sequence(segment, i, before) / block;
    }
  }
  return own;
}

}  // namespace

std::vector<int32_t> static_list(const StaticPattern& pattern, int64_t list, int64_t own) {
  const int64_t dilation = pattern.dilations[static_cast<size_t>(list)];
  std::vector<int32_t> blocks;
  for (int64_t t = 0; t < pattern.window && own - t * dilation >= 0; ++t) {
    blocks.push_back(static_cast<int32_t>(own - t * dilation));
  }
  for (int64_t b = 0; b < std::min(pattern.first, own + 1); ++b) {
    const int64_t back = own - b;
    const bool in_window = back % dilation == 0 && back / dilation < pattern.window;
    if (!in_window) blocks.push_back(static_cast<int32_t>(b));
  }
  const int64_t between = own - pattern.window - pattern.first + 1;
  if (pattern.random > 0 && between > pattern.random) {
    Random random(pattern.seed, "random blocks");
    random.set_counter(static_cast<uint64_t>((own * pattern.lists() + list) * pattern.random));
    draw(random, between, pattern.random, pattern.first, blocks);
  } else if (pattern.random > 0) {
    for (int64_t i = 0; i < between; ++i) {
      blocks.push_back(static_cast<int32_t>(pattern.first + i));
    }
  }
  std::sort(blocks.begin(), blocks.end());
  return blocks;
}

BlockLists static_lists(const StaticPattern& pattern, const CheckedBatch& batch, JournalSlot slot) {
  check(pattern, batch);
  const std::vector<int64_t> own = blocks_of_rows(batch, slot, pattern.block);
  const int64_t blocks = own.empty() ? 1 : std::ranges::max(own) + 1;  // that there are
  BlockLists lists;
  lists.lists = pattern.lists();
  lists.block = pattern.block;
  lists.width = std::min(blocks, pattern.width());
  const int64_t size = lists.lists * lists.width;  // of a row
  lists.blocks.assign(static_cast<size_t>(batch.rows() * size), -1);
  for (int64_t row = 0; row < batch.rows(); ++row) {
    int32_t* to = lists.blocks.data() + row * size;
    const int64_t block = own[static_cast<size_t>(row)];
    if (row > 0 && block == own[static_cast<size_t>(row - 1)]) {
      std::copy_n(to - size, size, to);
      continue;
    }
    for (int64_t list = 0; list < lists.lists; ++list, to += lists.width) {
      std::ranges::copy(static_list(pattern, list, block), to);
    }
  }
  return lists;
}

}  // namespace pronghorn
