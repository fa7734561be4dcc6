#include "tensor/sequence_shards.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "sequence_parallel";

void check_whole(const CheckedBatch& whole, int64_t pieces) {
  if (whole.embeddings().defined() || whole.patches().defined() || !whole.coordinates().empty() ||
      whole.shards() != nullptr) {
    throw Error(kWhere, "rows that are no tokens, or a part of them",
                "leave out --sequence-parallel: it is for models of texts");
  }
  for (const Segment& segment : whole.segments()) {
    require(segment.state == nullptr && segment.mask == Mask::causal, kWhere,
            "a sequence with a state, or whose rows see both ways");
    if (segment.length >= pieces) continue;
    throw Error(kWhere,
                fmt::format("a sequence of {} tokens over {} ranks", segment.length, pieces / 2),
                fmt::format("it takes {} tokens: use fewer ranks or longer sequences", pieces));
  }
}

}  // namespace

std::string_view name_of(SequenceParallel kind) {
  switch (kind) {
    case SequenceParallel::ulysses:
      return "ulysses";
    case SequenceParallel::ring:
      return "ring";
    case SequenceParallel::none:
      break;
  }
  return "none";
}

SequenceParallel sequence_parallel_named(std::string_view name) {
  return name == "ulysses" ? SequenceParallel::ulysses
         : name == "ring"  ? SequenceParallel::ring
                           : SequenceParallel::none;
}

std::vector<SequenceShards::Piece> SequenceShards::cut() const {
  check_whole(whole_, piece_count());
  std::vector<Piece> pieces;
  std::vector<int64_t> next(static_cast<size_t>(ranks_.count()), 0);
  const int64_t count = piece_count();
  for (int64_t sequence = 0; sequence < sequences(); ++sequence) {
    const Segment& segment = whole_.segments()[static_cast<size_t>(sequence)];
    for (int64_t number = 0; number < count; ++number) {
      const int64_t begin = segment.length * number / count;
      const int64_t end = segment.length * (number + 1) / count;
      int64_t& row = next[static_cast<size_t>(rank_of(number))];
      // A rank meets its pieces of a sequence in their order, and no others in between.
      pieces.push_back({sequence, number, segment.first_row + begin, end - begin, row});
      row += end - begin;
    }
  }
  return pieces;
}

SequenceShards::SequenceShards(Ranks& ranks, SequenceParallel kind, const CheckedBatch& whole,
                               std::vector<SequenceState*> states)
    : ranks_(ranks),
      kind_(kind),
      whole_(whole),
      pieces_(cut()),
      states_(std::move(states)),
      local_(Batch()) {
  require(states_.empty() || std::ssize(states_) == sequences(), kWhere,
          "{} states for {} sequences", states_.size(), sequences());
  for (int64_t sequence = 0; keeps() && sequence < sequences(); ++sequence) {
    const int64_t length = whole_.segments()[static_cast<size_t>(sequence)].length;
    require(length > kExactStep && length % kExactStep == 0 && state(sequence).length() == 0 &&
                !state(sequence).evicts(),
            kWhere, "the state of {} tokens is to be kept, after {}", length,
            state(sequence).length());
  }
  for (int64_t rank = 0; rank < ranks_.count(); ++rank) {
    auto rows = std::make_shared<std::vector<int32_t>>();
    for (int64_t sequence = 0; sequence < sequences(); ++sequence) {
      for (const int64_t slot : {0, 1}) {
        const Piece& own = piece(sequence, number_of(rank, slot));
        for (int64_t i = 0; i < own.length; ++i) {
          rows->push_back(static_cast<int32_t>(own.first_row + i));
        }
      }
    }
    auto numbers = std::make_shared<std::vector<int32_t>>(rows->size());
    std::iota(numbers->begin(), numbers->end(), 0);
    rows_.push_back(std::move(rows));
    own_rows_.push_back(std::move(numbers));
  }
  local_ = CheckedBatch(local_batch(whole_.tokens()));
}

void SequenceShards::advance_states() const {
  if (!keeps() || !ranks_.is_root()) return;
  for (int64_t sequence = 0; sequence < sequences(); ++sequence) {
    const int64_t length = whole_.segments()[static_cast<size_t>(sequence)].length;
    const auto& layers = state(sequence).layers();
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      for (const Journal& journal : layers[layer]) {
        require(journal.length() == length, fmt::format("layers.{}", layer),
                "'{}' was left {} rows of a sequence of {} that several ranks have read",
                journal.shape().name, journal.length(), length);
      }
    }
    state(sequence).advance(length);
  }
}

int64_t SequenceShards::place(int64_t local_row) const {
  const int64_t row = (*rows(ranks_.rank()))[static_cast<size_t>(local_row)];
  const std::span<const Segment> segments = whole_.segments();
  const auto after = std::ranges::upper_bound(segments, row, {}, &Segment::first_row);
  return row - std::prev(after)->first_row;
}

std::vector<int32_t> SequenceShards::part_of(std::span<const int32_t> values) const {
  require(std::ssize(values) == whole_.rows(), kWhere, "{} values for {} rows", values.size(),
          whole_.rows());
  std::vector<int32_t> part;
  for (const int32_t row : *rows(ranks_.rank())) part.push_back(values[static_cast<size_t>(row)]);
  return part;
}

Batch SequenceShards::local_batch(std::span<const int32_t> tokens) const {
  Batch batch;
  if (!tokens.empty()) batch.tokens = part_of(tokens);
  batch.positions = part_of(whole_.positions());
  batch.shards = this;
  for (int64_t sequence = 0; sequence < sequences(); ++sequence) {
    for (const int64_t slot : {0, 1}) {
      const Piece& own = piece(sequence, number_of(ranks_.rank(), slot));
      Segment& segment = batch.segments.emplace_back();
      segment.first_row = own.local_row;
      segment.length = own.length;
    }
  }
  return batch;
}

void require_whole(const CheckedBatch& batch, std::string_view where, bool by_heads) {
  if (batch.shards() == nullptr) return;
  throw Error(
      where,
      fmt::format("needs whole sequences, which lie on several ranks (sequence_parallel {})",
                  name_of(batch.shards()->kind())),
      by_heads && batch.shards()->kind() == SequenceParallel::ring
          ? "try --sequence-parallel ulysses, or leave it out"
          : "leave out --sequence-parallel");
}

}  // namespace pronghorn
