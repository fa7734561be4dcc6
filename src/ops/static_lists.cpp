#include "ops/static_lists.h"

#include <algorithm>

#include "backend/attention.h"
#include "base/error.h"
#include "base/random.h"
#include "ops/key_blocks.h"
#include "tensor/sequence_shards.h"

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

void check_both_ways(const CheckedBatch& batch) {
  for (const Segment& segment : batch.segments()) {
    require(segment.mask == Mask::full && segment.state == nullptr, kWhere,
            "rows that see later ones, where a text is not given whole (for models that fill in "
            "masked tokens of whole texts, and of images)");
  }
}

// Lists of `width` at most for each row, of which list(segment, i, l) makes one.
template <typename List>
BlockLists lists_of_rows(const CheckedBatch& batch, int64_t count, int64_t width, int64_t block,
                         const List& list) {
  BlockLists lists;
  lists.lists = count;
  lists.width = std::max<int64_t>(1, width);
  lists.block = block;
  lists.blocks.assign(static_cast<size_t>(batch.rows() * count * lists.width), -1);
  for (const Segment& segment : batch.segments()) {
    for (int64_t i = 0; i < segment.length; ++i) {
      int32_t* to = lists.blocks.data() + (segment.first_row + i) * count * lists.width;
      for (int64_t l = 0; l < count; ++l, to += lists.width) {
        std::ranges::copy(list(segment, i, l), to);
      }
    }
  }
  return lists;
}

int64_t longest_segment(const CheckedBatch& batch) {
  int64_t longest = 0;
  for (const Segment& segment : batch.segments()) longest = std::max(longest, segment.length);
  return longest;
}

}  // namespace

BlockLists both_ways_lists(const StaticPattern& pattern, const CheckedBatch& batch) {
  check_both_ways(batch);
  require(pattern.block == 1 && pattern.random == 0, kWhere, "{} drawn blocks of {} both ways",
          pattern.random, pattern.block);
  const int64_t width = std::min(longest_segment(batch), 2 * pattern.window - 1 + pattern.first);
  return lists_of_rows(
      batch, pattern.lists(), width, 1, [&](const Segment& segment, int64_t row, int64_t list) {
        std::vector<int32_t> keys;
        if (row < pattern.first) return keys;
        const int64_t first = std::min(pattern.first, segment.length);
        for (int64_t key = 0; key < first; ++key) keys.push_back(static_cast<int32_t>(key));
        const int64_t step = pattern.dilations[static_cast<size_t>(list)];
        // The nearest of the window's keys to the text's two ends.
        const int64_t back = std::min(pattern.window - 1, row / step);
        const int64_t ahead = std::min(pattern.window - 1, (segment.length - 1 - row) / step);
        for (int64_t t = -back; t <= ahead; ++t) {
          const int64_t key = row + t * step;
          if (key >= first) keys.push_back(static_cast<int32_t>(key));
        }
        return keys;
      });
}

BlockLists global_lists(int64_t first, const CheckedBatch& batch) {
  check_both_ways(batch);
  const auto blocks_of = [](int64_t rows) { return (rows + kAttentionTile - 1) / kAttentionTile; };
  return lists_of_rows(batch, 1, blocks_of(longest_segment(batch)), kAttentionTile,
                       [&](const Segment& segment, int64_t row, int64_t) {
                         std::vector<int32_t> blocks;
                         if (row >= first) return blocks;
                         for (int64_t b = 0; b < blocks_of(segment.length); ++b) {
                           blocks.push_back(static_cast<int32_t>(b));
                         }
                         return blocks;
                       });
}

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
  require_whole(batch, kWhere);
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
