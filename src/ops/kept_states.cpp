#include "ops/kept_states.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "ops/journal_rows.h"
#include "tensor/memory.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "sequence_parallel";

// The first row that a journal of rows holds when the first `length` have come at once.
int64_t first_held(const JournalShape& shape, int64_t length) {
  if (shape.fold_interval == 0 || shape.kept > 0) return 0;
  const int64_t fold = (length - 1) / shape.fold_interval * shape.fold_interval;
  return std::max<int64_t>(0, fold - shape.fold_interval - shape.history);
}

Journal& journal_of(const SequenceShards& shards, int64_t sequence, JournalSlot slot) {
  return shards.state(sequence).journal(slot.layer, slot.index);
}

const Segment& segment_of(const SequenceShards& shards, int64_t sequence) {
  return shards.whole().segments()[static_cast<size_t>(sequence)];
}

}  // namespace

void keep_rows(const SequenceShards& shards, JournalSlot slot, std::span<const Tensor> parts) {
  if (!shards.keeps()) return;
  Ranks& ranks = shards.ranks();
  const bool root = ranks.is_root();
  Batch kept;                  // the rows of all sequences that are held, one below the other
  std::vector<int64_t> first;  // of each sequence
  for (int64_t sequence = 0; sequence < shards.sequences(); ++sequence) {
    const Segment& segment = segment_of(shards, sequence);
    first.push_back(first_held(journal_of(shards, sequence, slot).shape(), segment.length));
    const auto positions =
        shards.whole().positions(segment).subspan(static_cast<size_t>(first.back()));
    Segment& rows = kept.segments.emplace_back();
    rows.first_row = kept.rows();
    rows.length = std::ssize(positions);
    kept.positions.insert(kept.positions.end(), positions.begin(), positions.end());
  }
  std::vector<Tensor> tensors;
  std::vector<Shape> shapes;
  int64_t width = 0;
  for (const Tensor& part : parts) {
    if (!part.defined()) continue;
    tensors.push_back(part);
    shapes.push_back({root ? kept.rows() : 0, part.columns()});
    width += part.columns();
  }
  std::vector<Transfer> transfers;
  for (int64_t from = 0; from < ranks.count(); ++from) {
    if (from != ranks.rank() && !root) continue;
    const auto from_rows = std::make_shared<std::vector<int32_t>>();
    const auto to_rows = std::make_shared<std::vector<int32_t>>();
    for (int64_t sequence = 0; sequence < shards.sequences(); ++sequence) {
      const auto at = static_cast<size_t>(sequence);
      for (const int64_t half : {0, 1}) {
        const SequenceShards::Piece& piece = shards.piece(sequence, shards.number_of(from, half));
        const int64_t place = piece.first_row - segment_of(shards, sequence).first_row;
        for (int64_t i = std::max<int64_t>(0, first[at] - place); i < piece.length; ++i) {
          from_rows->push_back(static_cast<int32_t>(piece.local_row + i));
          to_rows->push_back(
              static_cast<int32_t>(kept.segments[at].first_row + place + i - first[at]));
        }
      }
    }
    for (size_t i = 0; i < tensors.size(); ++i) {
      transfers.push_back({from, 0, i, from_rows, to_rows, 0, 0, tensors[i].columns()});
    }
  }
  const std::vector<Tensor> rows =
      exchange(Context(), ranks, kSentKept, tensors, shapes, std::move(transfers));
  if (!root) return;
  const CheckedBatch batch(std::move(kept));
  for (int64_t sequence = 0; sequence < shards.sequences(); ++sequence) {
    const auto at = static_cast<size_t>(sequence);
    Journal& journal = journal_of(shards, sequence, slot);
    const JournalShape& shape = journal.shape();
    require(width == shape.row_width, kWhere, "rows of {} are kept of '{}', whose rows have {}",
            width, shape.name, shape.row_width);
    const std::span<const int32_t> positions =
        shards.whole().positions(segment_of(shards, sequence));
    if (first[at] > 0) journal.skip(positions.first(static_cast<size_t>(first[at])));
    append_rows(batch, batch.segments()[at], rows, journal);
    if (shape.fold_interval > 0 && !shape.is_shared) journal.pass();
  }
}

void keep_states(const SequenceShards& shards, JournalSlot slot, const Tensor& states) {
  if (!shards.keeps() || !shards.ranks().is_root()) return;
  for (int64_t sequence = 0; sequence < shards.sequences(); ++sequence) {
    Journal& journal = journal_of(shards, sequence, slot);
    const int64_t size = journal.shape().anchor_size;
    require(states.rows() == shards.sequences() && states.columns() == size, kWhere,
            "states {} are kept of '{}', whose anchor has {}", states.shape(), journal.shape().name,
            size);
    const Segment& segment = segment_of(shards, sequence);
    journal.skip(shards.whole().positions(segment));
    const RowCopy state{states.row(sequence), journal.begin_anchor(),
                        static_cast<size_t>(size) * sizeof(float)};
    memory().copy({&state, 1});
    journal.commit_anchor(segment.length, false);
  }
}

Tensor columns_at_root(const SequenceShards& shards, const Tensor& x,
                       std::span<const Columns> of_rank) {
  Ranks& ranks = shards.ranks();
  const auto rows = std::make_shared<std::vector<int32_t>>(static_cast<size_t>(x.rows()));
  std::iota(rows->begin(), rows->end(), 0);
  int64_t width = 0;
  std::vector<Transfer> transfers;
  for (int64_t from = 0; from < ranks.count(); ++from) {
    const Columns& columns = of_rank[static_cast<size_t>(from)];
    width += columns.count;
    if (from != ranks.rank() && !ranks.is_root()) continue;
    transfers.push_back({from, 0, 0, rows, rows, 0, columns.begin, columns.count});
  }
  const Shape shape{ranks.is_root() ? x.rows() : 0, width};
  return exchange(Context(), ranks, kSentKept, {&x, 1}, {&shape, 1}, std::move(transfers)).front();
}

OwnStates::OwnStates(const CheckedBatch& whole, const JournalShape& shape) : batch_(Batch()) {
  auto layout = std::make_shared<StateLayout>();
  layout->layers.push_back({shape});
  states_.assign(whole.segments().size(), SequenceState(std::move(layout)));
  Batch batch;
  batch.positions.assign(whole.positions().begin(), whole.positions().end());
  for (size_t i = 0; i < states_.size(); ++i) {
    Segment& segment = batch.segments.emplace_back();
    segment.state = &states_[i];
    segment.first_row = whole.segments()[i].first_row;
    segment.length = whole.segments()[i].length;
  }
  batch_ = CheckedBatch(std::move(batch));
}

Tensor OwnStates::after() {
  const int64_t size = states_.front().journal(0, 0).shape().anchor_size;
  const Tensor all = Tensor::empty({std::ssize(states_), size});
  PooledVector<RowCopy> copies;
  for (size_t i = 0; i < states_.size(); ++i) {
    Journal& journal = states_[i].journal(0, 0);
    const bool live = journal.shape().live;
    const int64_t row = live ? journal.live_row() : journal.anchor_row();
    require(row == batch_.segments()[i].length, kWhere, "'{}' has a state after {} rows of {}",
            journal.shape().name, row, batch_.segments()[i].length);
    copies.push_back({live ? journal.live() : journal.anchor(), all.row(static_cast<int64_t>(i)),
                      static_cast<size_t>(size) * sizeof(float)});
  }
  memory().copy(copies);
  return all;
}

}  // namespace pronghorn
