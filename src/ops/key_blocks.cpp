#include "ops/key_blocks.h"

#include <algorithm>
#include <memory>

#include "backend/backend.h"
#include "ops/attention_operands.h"
#include "ops/operands.h"

namespace pronghorn {

int64_t index_in_sequence(const Segment& segment, int64_t row, int64_t before) {
  if (segment.parents.empty()) return before + row;
  return before + std::ssize(path_to_node(segment, row)) - 1;
}

std::vector<int64_t> path_to_node(const Segment& segment, int64_t node) {
  std::vector<int64_t> path;
  for (; node >= 0; node = segment.parents[static_cast<size_t>(node)]) path.push_back(node);
  std::reverse(path.begin(), path.end());
  return path;
}

KeyBlockRule moba_rule(const AttentionOptions& options) {
  KeyBlockRule rule;
  rule.block = options.block;
  rule.choice.lists = options.heads;
  rule.choice.top = options.top_blocks;
  return rule;
}

KeyBlockRule quest_rule(const AttentionOptions& options, const JournalShape& shape) {
  KeyBlockRule rule;
  rule.block = shape.blocks.length;
  rule.statistic = BlockStatistic::bounds;
  rule.choice.score = BlockChoice::Score::bound;
  rule.choice.lists = options.kv_heads;
  rule.choice.top = shape.top_blocks;
  return rule;
}

int64_t most_blocks(std::span<const int32_t> own) {
  return own.empty() ? 1 : int64_t{*std::ranges::max_element(own)} + 1;
}

namespace {

// Makes vectors of blocks, of which it is told one after another, in one go.
class Summaries {
 public:
  Summaries(const AttentionShape& shape, const KeyBlockRule& rule)
      : rule_(rule),
        columns_(shape.kv_heads * shape.key_dim),
        width_(rule.statistic == BlockStatistic::bounds ? 2 * columns_ : columns_) {}

  int64_t width() const { return width_; }

  // One by the rows that `row` gives the address of, `run` of which lie one after another from each
  // multiple of it on.
  template <typename Row>
  void add(int64_t block, int64_t run, const Row& row, float* to) {
    places_.push_back({tiles_.size(), to});
    run = std::min(run, rule_.block);
    for (int64_t i = block * rule_.block; i < (block + 1) * rule_.block; i += run) {
      KeyTile tile;
      tile.keys = row(i);
      tile.count = static_cast<int32_t>(run);
      tiles_.push_back(tile);
    }
  }

  // stride: numbers from one row to the next.
  void make(DType type, int64_t stride) {
    if (places_.empty()) return;
    std::vector<KeyBlock> blocks;
    for (size_t i = 0; i < places_.size(); ++i) {
      const size_t end = i + 1 < places_.size() ? places_[i + 1].tile : tiles_.size();
      blocks.push_back(
          {std::span(tiles_).subspan(places_[i].tile, end - places_[i].tile), places_[i].to});
    }
    backend().attention().summarise(blocks, rule_.statistic, columns_, type, stride);
    places_.clear();
    tiles_.clear();
  }

 private:
  struct Place {
    size_t tile;
    float* to;
  };
  const KeyBlockRule& rule_;
  int64_t columns_, width_;
  std::vector<Place> places_;
  std::vector<KeyTile> tiles_;
};

// Appends the vectors of all blocks of committed rows that have none yet.
void complete_blocks(Journal& journal, const KeyBlockRule& rule, Summaries& summaries) {
  Journal& blocks = journal.blocks();
  const int64_t rows = journal.length() - journal.tree_rows();
  const int64_t first = blocks.length(), end = journal.shape().blocks.within(rows);
  for (int64_t b = first; b < end; ++b) {
    const int32_t position = journal.position((b + 1) * rule.block - 1);
    blocks.append({&position, 1});
  }
  for (int64_t b = first; b < end; ++b) {
    summaries.add(
        b, kAttentionTile, [&](int64_t row) { return journal.row_data(row); },
        blocks.mutable_row(b));
  }
  summaries.make(journal.shape().row_type, journal.shape().row_width);
}

class KeyBlockChoice {
 public:
  KeyBlockChoice(const Tensor& k, const AttentionOptions& options, const KeyBlockRule& rule,
                 int64_t rows)
      : k_(k),
        shape_(attention_shape(options)),
        rule_(rule),
        summaries_(shape_, rule),
        units_(entry_options(options)),
        own_(static_cast<size_t>(rows)) {}

  void add(const Segment& segment, JournalSlot slot) {
    if (segment.length == 0) return;
    if (segment.state == nullptr) return add_fresh(segment);
    Journal& journal = segment.state->journal(slot.layer, slot.index);
    complete_blocks(journal, rule_, summaries_);
    if (segment.parents.empty()) return add_chain(segment, journal);
    for (int64_t node = 0; node < segment.length; ++node) add_node(segment, node, journal);
  }

  BlockLists choose(const Tensor& q) {
    BlockChoice choice = rule_.choice;
    choice.top = std::min(choice.top, most_blocks(own_));
    BlockLists lists;
    lists.lists = choice.lists;
    lists.width = choice.top;
    lists.block = rule_.block;
    lists.blocks.resize(own_.size() * static_cast<size_t>(choice.lists * choice.top));
    backend().attention().choose_blocks(shape_, choice, units_.units(), input_matrix(q),
                                        own_.data(), lists.blocks.data());
    return lists;
  }

 private:
  // Entries are keys of all key-value heads, of which the values are not looked at.
  static AttentionOptions entry_options(const AttentionOptions& options) {
    AttentionOptions entries;
    entries.heads = options.heads;
    entries.kv_heads = options.kv_heads;
    entries.head_dim = options.head_dim;
    entries.value_in_key = true;
    return entries;
  }

  // Rows of the batch from `first_row` on see the blocks before their own.
  std::vector<KeyRange> see(int64_t first_row, int64_t rows, int64_t first_index) {
    std::vector<KeyRange> visible;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t block = (first_index + i) / rule_.block;
      own_[static_cast<size_t>(first_row + i)] = static_cast<int32_t>(block);
      visible.push_back({0, block});
    }
    return visible;
  }

  void add_fresh(const Segment& segment) {
    const std::vector<KeyRange> visible = see(segment.first_row, segment.length, 0);
    const int64_t count = (segment.length - 1) / rule_.block;
    const Tensor entries = Tensor::empty({std::max<int64_t>(1, count), summaries_.width()});
    for (int64_t b = 0; b < count; ++b) {
      summaries_.add(
          b, kAttentionTile,
          [&](int64_t row) {
            return reinterpret_cast<const std::byte*>(k_.row(segment.first_row + row));
          },
          entries.row(b));
    }
    summaries_.make(DType::f32, k_.row_stride());
    units_.add_entries(segment.first_row, visible, entries, 0, count);
    kept_.push_back(entries);
  }

  void add_chain(const Segment& segment, const Journal& journal) {
    const int64_t before = journal.length() - segment.length;
    const std::vector<KeyRange> visible = see(segment.first_row, segment.length, before);
    units_.add_entries(segment.first_row, visible, journal.blocks(), journal.blocks().length(), {});
  }

  // A node of a tree, whose path may complete blocks of its own.
  void add_node(const Segment& segment, int64_t node, const Journal& journal) {
    const int64_t committed = journal.length() - segment.length;
    const std::vector<int64_t> path = path_to_node(segment, node);
    const int64_t index = committed + std::ssize(path) - 1;
    const std::vector<KeyRange> visible = see(segment.first_row + node, 1, index);
    const int64_t held = journal.blocks().length(), count = index / rule_.block - held;
    std::vector<const float*> more;
    Tensor entries;  // outlives the copies that are made of it
    if (count > 0) {
      entries = Tensor::empty({count, summaries_.width()});
      for (int64_t i = 0; i < count; ++i) {
        const auto row = [&](int64_t key) {
          const bool is_node = key >= committed;
          return journal.row_data(is_node ? committed + path[static_cast<size_t>(key - committed)]
                                          : key);
        };
        summaries_.add(held + i, 1, row, entries.row(i));
        more.push_back(entries.row(i));
      }
      summaries_.make(journal.shape().row_type, journal.shape().row_width);
    }
    units_.add_entries(segment.first_row + node, visible, journal.blocks(), held, more);
  }

  const Tensor& k_;
  AttentionShape shape_;
  const KeyBlockRule& rule_;
  Summaries summaries_;
  AttentionUnits units_;
  PooledVector<int32_t> own_;  // the block of each row
  std::vector<Tensor> kept_;   // what the units point to
};

}  // namespace

void complete_key_blocks(Journal& journal, const AttentionOptions& options,
                         const KeyBlockRule& rule) {
  Summaries summaries(attention_shape(options), rule);
  complete_blocks(journal, rule, summaries);
}

BlockLists choose_by_keys(const CheckedBatch& batch, std::span<const Segment* const> segments,
                          const Tensor& q, const Tensor& k, const AttentionOptions& options,
                          const KeyBlockRule& rule, JournalSlot slot) {
  KeyBlockChoice choice(k, options, rule, batch.rows());
  for (const Segment* segment : segments) choice.add(*segment, slot);
  return choice.choose(q);
}

}  // namespace pronghorn
