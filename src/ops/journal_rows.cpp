#include "ops/journal_rows.h"

#include <algorithm>

#include "backend/backend.h"
#include "base/error.h"
#include "base/threads.h"

namespace pronghorn {

int64_t find_rows(const Journal& journal, std::span<const int32_t> positions) {
  const int64_t first = positions.front();
  require(first >= journal.first_row() && first + std::ssize(positions) <= journal.length() &&
              journal.position(first) == positions.front() &&
              journal.position(first + std::ssize(positions) - 1) == positions.back(),
          "attention", "rows at positions {} to {} are not those of the sequence",
          positions.front(), positions.back());
  return first;
}

void append_rows(const CheckedBatch& batch, const Segment& segment, std::span<const Tensor> parts,
                 Journal& journal) {
  const JournalShape& shape = journal.shape();
  const std::span<const int32_t> positions = batch.positions(segment);
  const int64_t first =
      segment.mask == Mask::replace ? find_rows(journal, positions) : journal.append(positions);
  const int64_t end = first + segment.length;
  if (shape.blocks.length > 0) {  // those of rows that are replaced stand for others now
    Journal& blocks = journal.blocks();
    blocks.truncate(std::min(blocks.length(), shape.blocks.within(first)));
  }
  // A page at a time: its rows lie one after another.
  const int64_t first_page = first / Journal::kPageRows;
  const int64_t pages = segment.length == 0 ? 0 : (end - 1) / Journal::kPageRows - first_page + 1;
  parallel_for(pages, 1, [&](int64_t page_begin, int64_t page_end) {
    for (int64_t page = page_begin; page < page_end; ++page) {
      const int64_t row = std::max(first, (first_page + page) * Journal::kPageRows);
      const int64_t count = std::min(end, (first_page + page + 1) * Journal::kPageRows) - row;
      std::byte* to = journal.mutable_row_data(row);
      for (const Tensor& part : parts) {
        if (!part.defined()) continue;
        backend().attention().store_rows(
            {part.row(segment.first_row + row - first), part.row_stride()}, count, part.columns(),
            shape.row_type, to, shape.row_width);
        to += dtype_bytes(shape.row_type, part.columns());
      }
    }
  });
  if (!segment.parents.empty()) journal.set_tree(segment.parents);
}

Tensor read_rows(const Journal& journal) {
  require(journal.first_row() == 0, "attention", "the first {} rows are no longer held",
          journal.first_row());
  const JournalShape& shape = journal.shape();
  const Tensor rows = Tensor::empty({journal.length(), shape.row_width});
  // A page at a time: its rows lie one after another.
  const int64_t pages = (journal.length() + Journal::kPageRows - 1) / Journal::kPageRows;
  parallel_for(pages, 1, [&](int64_t page_begin, int64_t page_end) {
    for (int64_t page = page_begin; page < page_end; ++page) {
      const int64_t row = page * Journal::kPageRows;
      backend().attention().load_rows(
          journal.row_data(row), std::min(Journal::kPageRows, journal.length() - row),
          shape.row_width, shape.row_type, shape.row_width, {rows.row(row), rows.row_stride()});
    }
  });
  return rows;
}

}  // namespace pronghorn
