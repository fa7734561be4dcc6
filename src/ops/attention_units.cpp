#include "ops/attention_units.h"

#include <algorithm>

#include "ops/attention_operands.h"
#include "tensor/memory.h"

namespace pronghorn {

static_assert(kAttentionTile == Journal::kPageRows, "a tile of keys is a page of the journal");

AttentionLimits limits_of(const AttentionOptions& options, const JournalShape& shape) {
  AttentionLimits limits{options.window, options.segment, options.prefix};
  if (options.earlier) limits.segment = limits.prefix = 0;
  if (!shape.rolls) return limits;
  limits.window = limits.window > 0 ? std::min(limits.window, shape.history) : shape.history;
  limits.prefix = shape.kept;
  return limits;
}

namespace {

// The end of the block that row `i` is in, among rows at these positions.
int64_t block_end(std::span<const int32_t> positions, int64_t i, int64_t block) {
  const int64_t number = positions[static_cast<size_t>(i)] / block;
  while (i < std::ssize(positions) && positions[static_cast<size_t>(i)] / block == number) ++i;
  return i;
}

// Rows of a segment that its row `i` sees: those before this one.
int64_t segment_end(const Segment& segment, std::span<const int32_t> positions, int64_t i) {
  if (segment.mask == Mask::causal) return i + 1;
  if (segment.mask == Mask::blocks) return block_end(positions, i, segment.block);
  return segment.length;
}

}  // namespace

AttentionUnits::AttentionUnits(const AttentionOptions& options)
    : options_(options), limits_(limits_of(options, {})) {}

std::span<const AttentionUnit> AttentionUnits::units() {
  for (size_t i = 0; i < units_.size(); ++i) {
    const size_t end = i + 1 < units_.size() ? places_[i + 1].tile : tiles_.size();
    units_[i].tiles = std::span(tiles_).subspan(places_[i].tile, end - places_[i].tile);
    units_[i].visible = visible_.data() + places_[i].visible;
  }
  return units_;
}

// The first of keys first ... count - 1, whose positions do not decrease, inside the window and the
// segment of a row at `position`.
template <typename PositionOf>
int64_t AttentionUnits::window_begin(int32_t position, int64_t first, int64_t count,
                                     PositionOf&& position_of) const {
  if (!limits_.any()) return 0;
  int64_t before = -1;  // the last position that the row does not see
  if (limits_.window > 0) before = std::max(before, position - limits_.window);
  if (limits_.segment > 0) {
    before = std::max(before, position / limits_.segment * limits_.segment - 1);
  }
  int64_t low = first, high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (position_of(middle) > before) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

template <typename PositionOf>
void AttentionUnits::add_chain_ranges(const CheckedBatch& batch, const Segment& segment,
                                      int64_t first, int64_t before, PositionOf&& position_of) {
  const std::span<const int32_t> positions = batch.positions(segment);
  for (int64_t i = 0; i < segment.length; ++i) {
    int64_t end = before + segment_end(segment, positions, i);
    const int32_t position = positions[static_cast<size_t>(i)];
    if (options_.earlier) {
      const int64_t begin = position / options_.segment * options_.segment;
      while (end > first && position_of(end - 1) >= begin) --end;
    }
    visible_.push_back({window_begin(position, first, end, position_of), end, prefix()});
  }
}

void AttentionUnits::add_copies_ranges(std::span<const int32_t> positions, int64_t block) {
  const int64_t half = std::ssize(positions);
  std::vector<KeyRange> noisy;
  for (int64_t begin = 0; begin < half;) {
    const int64_t end = block_end(positions, begin, block);
    for (int64_t i = begin; i < end; ++i) {
      visible_.push_back({0, end});
      noisy.push_back({half + begin, half + end, begin});
    }
    begin = end;
  }
  visible_.insert(visible_.end(), noisy.begin(), noisy.end());
}

void AttentionUnits::begin_unit(int64_t first_row, int64_t rows) {
  AttentionUnit unit;
  unit.first_row = first_row;
  unit.rows = rows;
  unit.kv_heads = options_.kv_heads;
  units_.push_back(unit);
  places_.push_back({tiles_.size(), visible_.size()});
}

void AttentionUnits::add_tiles(const Rows& rows, int64_t count, int64_t key_stride_bytes,
                               int64_t value_stride_bytes, int64_t first_row) {
  for (int64_t row = 0; row < count; row += kAttentionTile) {
    KeyTile tile;
    tile.keys = rows.keys + row * key_stride_bytes;
    if (rows.values != nullptr) tile.values = rows.values + row * value_stride_bytes;
    tile.count = static_cast<int32_t>(std::min(kAttentionTile, count - row));
    if (first_row >= 0) tile.first_row = static_cast<int32_t>(first_row + row);
    tiles_.push_back(tile);
  }
}

AttentionUnits::Rows AttentionUnits::journal_row(const JournalShape& shape,
                                                 const std::byte* row) const {
  if (options_.value_in_key) return {row, nullptr};
  return {row, row + dtype_bytes(shape.row_type, options_.kv_heads * options_.head_dim)};
}

void AttentionUnits::add_pages(const Journal& journal, int64_t count) {
  const JournalShape& shape = journal.shape();
  // From the first page that is held: a window's cost does not grow with what is after it.
  const int64_t first = std::min(journal.first_row(), count) / kAttentionTile;
  const int64_t kept = std::min(journal.kept(), first * kAttentionTile);
  const auto add = [&](int64_t row, int64_t end) {
    const int64_t rows = std::min(kAttentionTile, end - row);
    add_tiles(journal_row(shape, journal.row_data(row)), rows, 0, 0, -1);
  };
  for (int64_t row = 0; row < kept; row += kAttentionTile) add(row, kept);
  for (int64_t row = first * kAttentionTile; row < count; row += kAttentionTile) add(row, count);
  units_.back().prefix_tiles = (kept + kAttentionTile - 1) / kAttentionTile;
  units_.back().first_tile = first;
  units_.back().type = shape.row_type;
  units_.back().key_stride = units_.back().value_stride = shape.row_width;
}

std::byte* AttentionUnits::kept_copy(std::span<const std::byte* const> rows, int64_t row_bytes) {
  const auto bytes = static_cast<size_t>(row_bytes);
  buffers_.push_back(std::make_unique<Storage>(rows.size() * bytes));
  std::byte* to = buffers_.back()->data();
  PooledVector<RowCopy> copies;
  for (size_t i = 0; i < rows.size(); ++i) copies.push_back({rows[i], to + i * bytes, bytes});
  memory().copy(copies);
  return to;
}

void AttentionUnits::add_entries(int64_t first_row, std::span<const KeyRange> visible,
                                 const Journal& entries, int64_t held,
                                 std::span<const float* const> more) {
  const JournalShape& shape = entries.shape();
  begin_unit(first_row, std::ssize(visible));
  visible_.insert(visible_.end(), visible.begin(), visible.end());
  const int64_t whole = more.empty() ? held : held / kAttentionTile * kAttentionTile;
  add_pages(entries, whole);
  if (more.empty()) return;
  std::vector<const std::byte*> tail;
  for (int64_t i = whole; i < held; ++i) tail.push_back(entries.row_data(i));
  for (const float* row : more) tail.push_back(reinterpret_cast<const std::byte*>(row));
  add_tiles(journal_row(shape, kept_copy(tail, shape.row_bytes())), std::ssize(tail),
            shape.row_bytes(), shape.row_bytes(), -1);
}

void AttentionUnits::add_entries(int64_t first_row, std::span<const KeyRange> visible,
                                 const Tensor& entries, int64_t first, int64_t count) {
  begin_unit(first_row, std::ssize(visible));
  visible_.insert(visible_.end(), visible.begin(), visible.end());
  if (count == 0) return;
  const int64_t stride = entries.row_stride();
  units_.back().key_stride = units_.back().value_stride = stride;
  const auto* rows = reinterpret_cast<const std::byte*>(entries.row(first));
  const int64_t row_bytes = stride * int64_t{sizeof(float)};
  add_tiles(journal_row({}, rows), count, row_bytes, row_bytes, first);
}

void AttentionUnits::add_tensors(const Tensor& k, const Tensor& v, int64_t first, int64_t count) {
  Rows rows{reinterpret_cast<const std::byte*>(k.row(first)), nullptr};
  const auto row_bytes = [](int64_t stride) { return stride * int64_t{sizeof(float)}; };
  units_.back().key_stride = k.row_stride();
  if (v.defined()) {
    rows.values = reinterpret_cast<const std::byte*>(v.row(first));
    units_.back().value_stride = v.row_stride();
  }
  add_tiles(rows, count, row_bytes(k.row_stride()), row_bytes(units_.back().value_stride), first);
}

void AttentionUnits::add_given(std::span<const KeyRange> visible, const Tensor& k,
                               const Tensor& v) {
  begin_unit(0, std::ssize(visible));
  visible_.insert(visible_.end(), visible.begin(), visible.end());
  add_tensors(k, v, 0, k.rows());
}

void AttentionUnits::add_fresh(const CheckedBatch& batch, const Segment& segment, const Tensor& k,
                               const Tensor& v) {
  limits_ = limits_of(options_, {});
  begin_unit(segment.first_row, segment.length);
  add_tensors(k, v, segment.first_row, segment.length);
  if (segment.mask == Mask::two_copies) {
    return add_copies_ranges(
        batch.positions(segment).first(static_cast<size_t>(segment.length / 2)), segment.block);
  }
  add_chain_ranges(batch, segment, 0, 0, [&](int64_t key) {
    return batch.positions()[static_cast<size_t>(segment.first_row + key)];
  });
}

void AttentionUnits::add_chain(const CheckedBatch& batch, const Segment& segment,
                               const Journal& journal) {
  limits_ = limits_of(options_, journal.shape());
  if (journal.shape().eviction.is_on() && journal.first_row() > 0) {
    limits_.dropped = true;
    limits_.prefix = journal.kept();
  }
  begin_unit(segment.first_row, segment.length);
  add_pages(journal, journal.length());
  add_chain_ranges(batch, segment, journal.first_row(), journal.length() - segment.length,
                   [&](int64_t key) { return journal.position(key); });
}

void AttentionUnits::add_last(const Journal& journal, int64_t count) {
  begin_unit(0, count);
  add_pages(journal, journal.length());
  for (int64_t end = journal.length() - count + 1; end <= journal.length(); ++end) {
    visible_.push_back({journal.first_row(), end, journal.kept()});
  }
}

void AttentionUnits::add_tree(const CheckedBatch& batch, const Segment& segment,
                              const Journal& journal) {
  limits_ = limits_of(options_, journal.shape());
  const int64_t row_bytes = journal.shape().row_bytes();
  const int64_t committed = journal.length() - segment.length;
  const int64_t whole = committed / kAttentionTile * kAttentionTile;
  std::vector<int64_t> rows;  // of the journal: what follows the whole pages
  std::vector<const std::byte*> addresses;
  for (int64_t node = 0; node < segment.length; ++node) {
    rows.clear();
    for (int64_t i = node; i >= 0; i = segment.parents[static_cast<size_t>(i)]) {
      rows.push_back(committed + i);
    }
    for (int64_t i = committed - 1; i >= whole; --i) rows.push_back(i);
    std::reverse(rows.begin(), rows.end());
    const auto tail = static_cast<int64_t>(rows.size());
    addresses.clear();
    for (const int64_t row : rows) addresses.push_back(journal.row_data(row));
    const std::byte* buffer = kept_copy(addresses, row_bytes);
    begin_unit(segment.first_row + node, 1);
    add_pages(journal, whole);
    add_tiles(journal_row(journal.shape(), buffer), tail, row_bytes, row_bytes, -1);
    const int64_t keys = whole + tail;
    const int32_t position = batch.positions()[static_cast<size_t>(segment.first_row + node)];
    const int64_t begin = window_begin(position, journal.first_row(), keys, [&](int64_t key) {
      return journal.position(key < whole ? key : rows[static_cast<size_t>(key - whole)]);
    });
    visible_.push_back({begin, keys, prefix()});
  }
}

}  // namespace pronghorn
