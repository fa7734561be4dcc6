#include "ops/exchange.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "ops/pointwise.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

// Rows of a tensor in memory of the host.
struct HostRows {
  PooledVector<float> values;
  int64_t columns = 0;

  float* at(int32_t row, int64_t column) { return values.data() + row * columns + column; }
};

HostRows read_rows(const Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {tensor.read(), tensor.columns()};
}

// Zeros to add to: -0 + x has the bits of x, even if that is -0.
HostRows zero_rows(int64_t rows, int64_t columns) {
  return {PooledVector<float>(static_cast<size_t>(rows * columns), -0.0f), columns};
}

HostRows zero_rows(const Tensor& like) {
  return like.defined() ? zero_rows(like.rows(), like.columns()) : HostRows();
}

// Adds what the transfers bring from `sources` of all ranks to `targets`.
void run(Ranks& ranks, const char* collective, std::span<const Transfer> transfers,
         std::span<HostRows> sources, std::span<HostRows> targets) {
  const int64_t me = ranks.rank();
  const auto count = static_cast<size_t>(ranks.count());
  std::vector<PooledVector<float>> sent(count), received(count);
  for (const Transfer& transfer : transfers) {
    if (transfer.from == me) {
      PooledVector<float>& message = sent[static_cast<size_t>(transfer.to)];
      HostRows& source = sources[transfer.tensor];
      for (const int32_t row : *transfer.from_rows) {
        const float* from = source.at(row, transfer.from_column);
        message.insert(message.end(), from, from + transfer.columns);
      }
    }
    if (transfer.to == me) {
      PooledVector<float>& message = received[static_cast<size_t>(transfer.from)];
      message.resize(message.size() +
                     transfer.to_rows->size() * static_cast<size_t>(transfer.columns));
    }
  }
  std::vector<std::span<const std::byte>> to;
  std::vector<std::span<std::byte>> from;
  for (const auto& message : sent) to.push_back(std::as_bytes(std::span(message)));
  for (auto& message : received) from.push_back(std::as_writable_bytes(std::span(message)));
  ranks.exchange_as(collective, to, from);
  std::vector<const float*> next;
  for (const auto& message : received) next.push_back(message.data());
  for (const Transfer& transfer : transfers) {
    if (transfer.to != me) continue;
    const float*& values = next[static_cast<size_t>(transfer.from)];
    for (const int32_t row : *transfer.to_rows) {
      float* target = targets[transfer.tensor].at(row, transfer.to_column);
      for (int64_t c = 0; c < transfer.columns; ++c) target[c] += values[c];
      values += transfer.columns;
    }
  }
}

std::vector<Transfer> reversed(std::vector<Transfer> transfers) {
  for (Transfer& transfer : transfers) {
    std::swap(transfer.from, transfer.to);
    std::swap(transfer.from_rows, transfer.to_rows);
    std::swap(transfer.from_column, transfer.to_column);
  }
  return transfers;
}

SharedRows first_rows(int64_t count) {
  auto rows = std::make_shared<std::vector<int32_t>>(static_cast<size_t>(count));
  std::iota(rows->begin(), rows->end(), 0);
  return rows;
}

}  // namespace

std::vector<Tensor> exchange(const Context& context, Ranks& ranks, const char* collective,
                             std::span<const Tensor> inputs, std::span<const Shape> outputs,
                             std::vector<Transfer> transfers) {
  std::vector<HostRows> sources, targets;
  for (const Tensor& input : inputs) sources.push_back(read_rows(input));
  for (const Shape& shape : outputs) targets.push_back(zero_rows(shape[0], shape[1]));
  run(ranks, collective, transfers, sources, targets);
  std::vector<Tensor> results;
  for (size_t i = 0; i < outputs.size(); ++i) {
    results.push_back(outputs[i][0] == 0 ? Tensor() : Tensor::from(targets[i].values, outputs[i]));
    if (context.tape != nullptr && results.back().defined()) {
      results.back().set_requires_grad(true);
    }
  }
  if (context.tape == nullptr) return results;

  context.tape->record([&ranks, collective, results,
                        kept = std::vector<Tensor>(inputs.begin(), inputs.end()),
                        back = reversed(std::move(transfers))] {
    // Other ranks wait for this one: it takes part even if nothing here has a gradient.
    std::vector<HostRows> from, to;
    for (const Tensor& result : results) {
      from.push_back(result.has_grad() ? read_rows(result.grad()) : zero_rows(result));
    }
    for (const Tensor& input : kept) to.push_back(zero_rows(input));
    run(ranks, collective, back, from, to);
    for (size_t i = 0; i < kept.size(); ++i) {
      if (!kept[i].requires_grad()) continue;
      kept[i].give_grad(Tensor::from(to[i].values, kept[i].shape()));
    }
  });
  return results;
}

std::vector<Tensor> to_heads(const Context& context, const SequenceShards& shards,
                             std::span<const SharedColumns> parts) {
  const int64_t me = shards.ranks().rank(), count = shards.ranks().count();
  std::vector<Tensor> inputs;
  std::vector<Shape> shapes;
  std::vector<Transfer> transfers;
  for (const SharedColumns& part : parts) {
    if (!part.tensor.defined()) continue;
    for (int64_t from = 0; from < count; ++from) {
      for (int64_t to = 0; to < count; ++to) {
        if (from != me && to != me) continue;
        const Columns& columns = part.of_rank[static_cast<size_t>(to)];
        transfers.push_back({from, to, inputs.size(), shards.own_rows(from), shards.rows(from),
                             columns.begin, 0, columns.count});
      }
    }
    inputs.push_back(part.tensor);
    shapes.push_back({shards.whole().rows(), part.of_rank[static_cast<size_t>(me)].count});
  }
  const std::vector<Tensor> sent =
      exchange(context, shards.ranks(), kSentHeads, inputs, shapes, std::move(transfers));
  std::vector<Tensor> results;
  auto next = sent.begin();
  for (const SharedColumns& part : parts) {
    results.push_back(part.tensor.defined() ? *next++ : Tensor());
  }
  return results;
}

Tensor to_rows(const Context& context, const SequenceShards& shards, const Tensor& x,
               std::span<const Columns> of_rank) {
  const int64_t me = shards.ranks().rank(), count = shards.ranks().count();
  int64_t width = 0;
  for (const Columns& columns : of_rank) width += columns.count;
  std::vector<Transfer> transfers;
  for (int64_t from = 0; from < count; ++from) {
    for (int64_t to = 0; to < count; ++to) {
      if (from != me && to != me) continue;
      const Columns& columns = of_rank[static_cast<size_t>(from)];
      transfers.push_back(
          {from, to, 0, shards.rows(to), shards.own_rows(to), 0, columns.begin, columns.count});
    }
  }
  const Shape shape{shards.local().rows(), width};
  return exchange(context, shards.ranks(), kSentHeads, {&x, 1}, {&shape, 1}, std::move(transfers))
      .front();
}

std::vector<Columns> even_columns(const SequenceShards& shards, int64_t columns,
                                  const char* where) {
  const int64_t count = shards.ranks().count();
  require(columns >= count, where, "{} channels over {} ranks", columns, count);
  std::vector<Columns> of_rank;
  for (int64_t rank = 0; rank < count; ++rank) {
    const int64_t begin = columns * rank / count, end = columns * (rank + 1) / count;
    of_rank.push_back({begin, end - begin});
  }
  return of_rank;
}

std::vector<Columns> all_columns(const SequenceShards& shards, int64_t width) {
  return std::vector<Columns>(static_cast<size_t>(shards.ranks().count()), Columns{0, width});
}

HeadShares::HeadShares(const SequenceShards& shards, int64_t heads, int64_t shared_heads,
                       const char* where)
    : ranks_(shards.ranks().count()),
      rank_(shards.ranks().rank()),
      heads_(heads / ranks_),
      group_(shared_heads > 0 ? heads / shared_heads : 0) {
  const bool fits =
      heads % ranks_ == 0 && group_ > 0 && (heads_ % group_ == 0 || group_ % heads_ == 0);
  if (!fits) {
    throw Error(where,
                fmt::format("{} heads in groups of {} cannot be dealt out to {} ranks", heads,
                            group_, ranks_),
                "use another number of ranks, or --sequence-parallel ring");
  }
  shared_ = std::max<int64_t>(1, heads_ / group_);
}

std::vector<Columns> HeadShares::of_heads(int64_t width) const {
  std::vector<Columns> columns;
  for (int64_t rank = 0; rank < ranks_; ++rank) {
    columns.push_back({rank * heads_ * width, heads_ * width});
  }
  return columns;
}

std::vector<Columns> HeadShares::of_shared(int64_t width) const {
  std::vector<Columns> columns;
  for (int64_t rank = 0; rank < ranks_; ++rank) {
    columns.push_back({rank * heads_ / group_ * width, shared_ * width});
  }
  return columns;
}

Tensor HeadShares::own(const Tensor& x, int64_t width) const {
  if (!x.defined()) return x;
  return x.column_slice(rank_ * heads_ * width, heads_ * width);
}

PrecededRows::PrecededRows(const Context& context, const SequenceShards& shards, const Tensor& x,
                           int64_t count)
    : batch_(Batch()) {
  const int64_t ranks = shards.ranks().count(), me = shards.ranks().rank();
  // The rows before a piece, piece by piece from the last: who has them, and where they go to.
  std::vector<Transfer> transfers;
  std::vector<int64_t> next(static_cast<size_t>(ranks), 0);
  for (int64_t sequence = 0; sequence < shards.sequences(); ++sequence) {
    for (int64_t number = 0; number < shards.piece_count(); ++number) {
      const int64_t to = shards.rank_of(number);
      int64_t& row = next[static_cast<size_t>(to)];
      const int64_t before =
          std::min(count, shards.piece(sequence, number).first_row -
                              shards.whole().segments()[static_cast<size_t>(sequence)].first_row);
      int64_t missing = before;
      for (int64_t earlier = number - 1; missing > 0; --earlier) {
        const SequenceShards::Piece& piece = shards.piece(sequence, earlier);
        const int64_t taken = std::min(missing, piece.length);
        auto from_rows = std::make_shared<std::vector<int32_t>>(static_cast<size_t>(taken));
        auto to_rows = std::make_shared<std::vector<int32_t>>(static_cast<size_t>(taken));
        std::iota(from_rows->begin(), from_rows->end(),
                  static_cast<int32_t>(piece.local_row + piece.length - taken));
        std::iota(to_rows->begin(), to_rows->end(), static_cast<int32_t>(row + missing - taken));
        missing -= taken;
        const int64_t from = shards.rank_of(earlier);
        if (from != me && to != me) continue;
        transfers.push_back(
            {from, to, 0, std::move(from_rows), std::move(to_rows), 0, 0, x.columns()});
      }
      row += before;
    }
  }
  const Shape shape{next[static_cast<size_t>(me)], x.columns()};
  const Tensor fetched =
      exchange(context, shards.ranks(), kSentRows, {&x, 1}, {&shape, 1}, std::move(transfers))
          .front();

  Batch batch;
  std::vector<Tensor> parts;
  int64_t used = 0;
  for (int64_t sequence = 0; sequence < shards.sequences(); ++sequence) {
    const Segment& whole = shards.whole().segments()[static_cast<size_t>(sequence)];
    for (const int64_t slot : {0, 1}) {
      const SequenceShards::Piece& piece = shards.piece(sequence, shards.number_of(me, slot));
      const int64_t before = std::min(count, piece.first_row - whole.first_row);
      if (before > 0) parts.push_back(fetched.row_slice(used, before));
      parts.push_back(x.row_slice(piece.local_row, piece.length));
      used += before;
      const int64_t first = batch.rows();
      places_.push_back({first, before, piece.length});
      Segment& segment = batch.segments.emplace_back();
      segment.first_row = first;
      segment.length = before + piece.length;
      const auto positions = shards.whole().positions().subspan(
          static_cast<size_t>(piece.first_row - before), static_cast<size_t>(segment.length));
      batch.positions.insert(batch.positions.end(), positions.begin(), positions.end());
    }
  }
  rows_ = stacked(context, parts);
  batch_ = CheckedBatch(std::move(batch));
}

Tensor PrecededRows::own(const Context& context, const Tensor& y) const {
  std::vector<Tensor> parts;
  for (const Place& place : places_) {
    parts.push_back(y.row_slice(place.first_row + place.before, place.length));
  }
  return stacked(context, parts);
}

Tensor states_before(const Context& context, const SequenceShards& shards, const Tensor& left,
                     const Tensor& transitions, int64_t height, const AdvanceState& advance) {
  const int64_t me = shards.ranks().rank(), count = shards.piece_count();
  const int64_t sequences = shards.sequences(), columns = left.columns();
  // Of all sequences, those of one of this rank's two pieces.
  const auto of_slot = [&](const Tensor& all, int64_t slot) {
    std::vector<Tensor> parts;
    for (int64_t sequence = 0; sequence < sequences; ++sequence) {
      parts.push_back(all.row_slice((2 * sequence + slot) * height, height));
    }
    return stacked(context, parts);
  };
  const SharedRows rows = first_rows(sequences * height);
  Tensor before[2];
  if (me == 0) before[0] = Tensor::zeros({sequences * height, columns});
  for (int64_t number = 0; number + 1 < count; ++number) {
    const int64_t from = shards.rank_of(number), to = shards.rank_of(number + 1);
    const int64_t slot = shards.slot_of(number);
    Tensor after;
    if (from == me) {
      after = of_slot(left, slot);
      if (number > 0) {
        after = add(context, advance(of_slot(transitions, slot), before[slot]), after);
      }
    }
    std::vector<Transfer> transfers;
    if (from == me || to == me) transfers.push_back({from, to, 0, rows, rows, 0, 0, columns});
    const Shape shape{to == me ? sequences * height : 0, columns};
    const Tensor next = exchange(context, shards.ranks(), kSentStates, {&after, 1}, {&shape, 1},
                                 std::move(transfers))
                            .front();
    if (to == me) before[shards.slot_of(number + 1)] = next;
  }
  std::vector<Tensor> all;
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    for (const Tensor& states : before) all.push_back(states.row_slice(sequence * height, height));
  }
  return stacked(context, all);
}

Tensor stacked(const Context& context, std::span<const Tensor> parts) {
  return parts.size() == 1 ? parts.front() : concatenate_rows(context, parts);
}

}  // namespace pronghorn
