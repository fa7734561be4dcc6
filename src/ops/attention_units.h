// Segments of a batch as the attention kernels see them: units of rows over tiles of keys.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "backend/attention.h"
#include "ops/attention.h"
#include "tensor/batch.h"
#include "tensor/storage.h"

namespace pronghorn {

// What keeps rows from seeing all that came before.
struct AttentionLimits {
  int64_t window = 0, segment = 0, prefix = 0;  // as in AttentionOptions
  // Of the rows before those that the journal still holds one after another it has the prefix.
  bool dropped = false;

  bool any() const { return window > 0 || segment > 0 || dropped; }
};

// Of rows that look at a journal of this shape, which may be a cache with a window of its own.
AttentionLimits limits_of(const AttentionOptions& options, const JournalShape& shape);

// Units for the kernels, with the memory that they point to.
class AttentionUnits {
 public:
  explicit AttentionUnits(const AttentionOptions& options);
  AttentionUnits(AttentionUnits&&) = default;
  AttentionUnits& operator=(AttentionUnits&&) = default;

  // A segment without a state, which attends to its own rows of k and v (none with value_in_key).
  void add_fresh(const CheckedBatch& batch, const Segment& segment, const Tensor& k,
                 const Tensor& v);
  // Rows 0 ... over rows of k and v. visible: which of them each row sees.
  void add_given(std::span<const KeyRange> visible, const Tensor& k, const Tensor& v);
  // A chain whose keys are already appended to `journal`.
  void add_chain(const CheckedBatch& batch, const Segment& segment, const Journal& journal);
  // The last `count` rows of a journal whose rows are dropped by weight, as rows 0 ... of operands
  // of their own.
  void add_last(const Journal& journal, int64_t count);
  // A token tree whose keys are already appended to `journal`: a unit for each node. The
  // sequence's last, partly filled page and the node's ancestors are copied together, so that
  // every key has the index that it would have in a chain.
  void add_tree(const CheckedBatch& batch, const Segment& segment, const Journal& journal);

  // Rows first_row ... over entries that stand for blocks of rows, each a row [key | value] of f32:
  // the first `held` of a journal and then `more`. visible: which entries each row sees.
  void add_entries(int64_t first_row, std::span<const KeyRange> visible, const Journal& entries,
                   int64_t held, std::span<const float* const> more);
  // The same over `count` rows of a tensor from row `first` on, which get their gradient.
  void add_entries(int64_t first_row, std::span<const KeyRange> visible, const Tensor& entries,
                   int64_t first, int64_t count);

  bool empty() const { return units_.empty(); }
  // Valid until something is added.
  std::span<const AttentionUnit> units();

 private:
  // Rows of keys and values in memory, `stride` numbers apart.
  struct Rows {
    const std::byte *keys = nullptr, *values = nullptr;
  };
  void begin_unit(int64_t first_row, int64_t rows);
  // Rows first ... first + count - 1 of tensors, which get their gradients.
  void add_tensors(const Tensor& k, const Tensor& v, int64_t first, int64_t count);
  // A copy of rows of the same size that lives as long as the units do.
  std::byte* kept_copy(std::span<const std::byte* const> rows, int64_t row_bytes);
  void add_tiles(const Rows& rows, int64_t count, int64_t key_stride_bytes,
                 int64_t value_stride_bytes, int64_t first_row);
  // Pages of the journal that hold its first `count` rows.
  void add_pages(const Journal& journal, int64_t count);
  Rows journal_row(const JournalShape& shape, const std::byte* row) const;

  template <typename PositionOf>
  int64_t window_begin(int32_t position, int64_t first, int64_t count,
                       PositionOf&& position_of) const;
  // What each row of a chain sees, when `before` keys precede the segment, those from `first` on
  // held.
  template <typename PositionOf>
  void add_chain_ranges(const CheckedBatch& batch, const Segment& segment, int64_t first,
                        int64_t before, PositionOf&& position_of);
  // What each row sees of a sequence without noise and with it.
  void add_copies_ranges(std::span<const int32_t> positions, int64_t block);

  AttentionOptions options_;
  // Keys that all rows see that they come before.
  int64_t prefix() const { return limits_.any() ? limits_.prefix : 0; }

  AttentionLimits limits_;  // of the segment that is being added
  PooledVector<AttentionUnit> units_;
  // Of each unit: where its tiles and ranges begin. The pointers are set when all are there.
  struct Place {
    size_t tile, visible;
  };
  PooledVector<Place> places_;
  PooledVector<KeyTile> tiles_;
  PooledVector<KeyRange> visible_;
  std::vector<std::unique_ptr<Storage>> buffers_;
};

// Whether rows see less than all that came before, whatever their cache.
inline bool is_limited(const AttentionOptions& options) {
  return options.window > 0 || options.segment > 0;
}

}  // namespace pronghorn
