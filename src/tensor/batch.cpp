#include "tensor/batch.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "batch";

// Segments with a state among which a sequence is looked for by comparing all pairs.
constexpr size_t kFewSegments = 64;

void check_tree(const Segment& segment) {
  require(segment.state != nullptr, kWhere, "a token tree needs a state");
  require(segment.mask == Mask::causal, kWhere, "a token tree is causal");
  require(static_cast<int64_t>(segment.parents.size()) == segment.length, kWhere,
          "{} parents for a tree of {} rows", segment.parents.size(), segment.length);
  for (size_t i = 0; i < segment.parents.size(); ++i) {
    require(segment.parents[i] >= -1 && segment.parents[i] < static_cast<int64_t>(i), kWhere,
            "row {} of a token tree has parent {}", i, segment.parents[i]);
  }
}

void check_mask(const Segment& segment, std::span<const int32_t> positions) {
  switch (segment.mask) {
    case Mask::causal:
    case Mask::full:
      return;
    case Mask::blocks:
      require(segment.block > 0, kWhere, "blocks of {} rows", segment.block);
      return;
    case Mask::two_copies: {
      require(segment.block > 0, kWhere, "blocks of {} rows", segment.block);
      require(segment.state == nullptr, kWhere, "two copies of a sequence with a state");
      const size_t half = positions.size() / 2;
      require(std::ranges::equal(positions.first(half), positions.subspan(half)), kWhere,
              "two copies of a sequence with other positions");
      return;
    }
    case Mask::replace: {
      require(segment.state != nullptr, kWhere, "rows to replace without a state");
      const int64_t length = segment.state->length();
      for (size_t i = 0; i < positions.size(); ++i) {
        require(positions[i] < length && positions[i] == positions[0] + static_cast<int32_t>(i),
                kWhere, "position {} to replace in a sequence of {}", positions[i], length);
      }
      return;
    }
  }
  require(false, kWhere, "a mask that does not exist");
}

void check_after(const Batch& batch, size_t number) {
  const int64_t after = batch.segments[number].after;
  if (after == -1) return;
  require(after >= 0 && after < static_cast<int64_t>(number), kWhere,
          "segment {} goes on from segment {}", number, after);
  require(batch.segments[static_cast<size_t>(after)].length > 0, kWhere,
          "segment {} goes on from one without rows", number);
  for (const size_t each : {number, static_cast<size_t>(after)}) {
    const Segment& segment = batch.segments[each];
    require(segment.state == nullptr && segment.mask == Mask::causal && batch.shards == nullptr,
            kWhere, "segments that go on from each other have a state or see both ways");
  }
}

// Journals are searched by position.
void check_order(const Segment& segment, std::span<const int32_t> positions) {
  const bool tree = !segment.parents.empty();
  for (size_t i = 0; i < positions.size(); ++i) {
    const int64_t parent = tree ? segment.parents[i] : static_cast<int64_t>(i) - 1;
    require(parent < 0 || positions[static_cast<size_t>(parent)] < positions[i], kWhere,
            "row {} of a segment has position {}, which does not follow that of row {}", i,
            positions[i], parent);
  }
}

void check_states(std::span<const Segment> segments) {
  constexpr const char* kTwice = "a sequence occurs in two segments";
  if (segments.size() <= kFewSegments) {
    for (size_t i = 1; i < segments.size(); ++i) {
      for (size_t j = 0; j < i && segments[i].state != nullptr; ++j) {
        require(segments[i].state != segments[j].state, kWhere, kTwice);
      }
    }
    return;
  }
  std::vector<const SequenceState*> states;
  for (const Segment& segment : segments) {
    if (segment.state != nullptr) states.push_back(segment.state);
  }
  std::sort(states.begin(), states.end(), std::less<>());
  require(std::adjacent_find(states.begin(), states.end()) == states.end(), kWhere, kTwice);
}

void check(const Batch& batch) {
  const int64_t rows = batch.rows();
  int64_t next = 0;
  for (size_t i = 0; i < batch.segments.size(); ++i) {
    const Segment& segment = batch.segments[i];
    check_after(batch, i);
    require(segment.first_row == next && segment.length >= 0, kWhere,
            "segments must follow one another: {} rows from row {} where {} was expected",
            segment.length, segment.first_row, next);
    require(segment.length <= rows - next, kWhere, "segments of more than its {} rows", rows);
    const auto positions =
        std::span(batch.positions)
            .subspan(static_cast<size_t>(next), static_cast<size_t>(segment.length));
    check_mask(segment, positions);
    if (!segment.parents.empty()) check_tree(segment);
    if (segment.state != nullptr) check_order(segment, positions);
    require(batch.shards == nullptr || (segment.state == nullptr && segment.mask == Mask::causal),
            kWhere, "pieces of sequences that have a state or see both ways");
    next += segment.length;
  }
  require(next == rows, kWhere, "segments of {} rows for {} positions", next, rows);
  check_states(batch.segments);
  for (const int32_t position : batch.positions) {
    require(position >= 0, kWhere, "position {}", position);
  }
  require(batch.tokens.empty() || static_cast<int64_t>(batch.tokens.size()) == rows, kWhere,
          "{} tokens for {} rows", batch.tokens.size(), rows);
  if (batch.embeddings.defined()) {
    require(batch.tokens.empty(), kWhere, "both tokens and embeddings");
    require(batch.embeddings.shape().size() == 2 && batch.embeddings.rows() == rows, kWhere,
            "embeddings {} for {} rows", batch.embeddings.shape(), rows);
  }
  if (batch.patches.defined()) {
    const auto seen = std::ranges::count(batch.tokens, kPatch);
    require(batch.patches.shape().size() == 2 && batch.patches.rows() == seen, kWhere,
            "patches {} for {} rows of them", batch.patches.shape(), seen);
  }
  require(batch.coordinates.empty() ||
              (rows > 0 && batch.coordinates.size() % static_cast<size_t>(rows) == 0),
          kWhere, "{} coordinates for {} rows", batch.coordinates.size(), rows);
}

}  // namespace

CheckedBatch::CheckedBatch(const Batch& batch) : batch_(&batch) { check(batch); }

CheckedBatch::CheckedBatch(Batch&& batch)
    : CheckedBatch(std::make_shared<const Batch>(std::move(batch))) {
  check(*batch_);
}

CheckedBatch::CheckedBatch(const CheckedBatch& other)
    : CheckedBatch(other.owned_ != nullptr ? other.owned_
                                           : std::make_shared<const Batch>(*other.batch_)) {}

bool CheckedBatch::needs_exact_rows() const {
  const auto is_long = [](const Segment& segment) {
    return segment.parents.empty() && segment.length > kExactStep;
  };
  return !std::ranges::all_of(segments(), is_long);
}

void add_segment(Batch& batch, SequenceState& state, std::span<const int32_t> tokens,
                 std::vector<int32_t> parents) {
  require(static_cast<int64_t>(tokens.size()) <= INT32_MAX - state.length(), kWhere,
          "{} tokens after {} are more than a sequence can have", tokens.size(), state.length());
  const auto first = static_cast<int32_t>(state.length());
  const int64_t row = batch.rows();
  batch.tokens.insert(batch.tokens.end(), tokens.begin(), tokens.end());
  batch.positions.resize(batch.positions.size() + tokens.size());
  int32_t* positions = batch.positions.data() + row;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (parents.empty()) {
      positions[i] = first + static_cast<int32_t>(i);
    } else {
      positions[i] = parents[i] < 0 ? first : positions[parents[i]] + 1;
    }
  }
  batch.segments.push_back(
      {&state, row, static_cast<int64_t>(tokens.size()), Mask::causal, std::move(parents)});
}

void add_fresh_segment(Batch& batch, std::span<const int32_t> tokens) {
  const int64_t row = batch.rows(), length = static_cast<int64_t>(tokens.size());
  batch.tokens.insert(batch.tokens.end(), tokens.begin(), tokens.end());
  batch.positions.resize(batch.positions.size() + tokens.size());
  std::iota(batch.positions.begin() + row, batch.positions.end(), 0);
  batch.segments.push_back({nullptr, row, length, Mask::causal, {}});
}

Batch continue_sequence(SequenceState& state, std::span<const int32_t> tokens) {
  Batch batch;
  add_segment(batch, state, tokens);
  return batch;
}

Batch fresh_segments(std::span<const int32_t> tokens, int64_t length) {
  require(length > 0 && static_cast<int64_t>(tokens.size()) % length == 0, kWhere,
          "{} tokens are not whole segments of {}", tokens.size(), length);
  Batch batch;
  for (size_t at = 0; at < tokens.size(); at += static_cast<size_t>(length)) {
    add_fresh_segment(batch, tokens.subspan(at, static_cast<size_t>(length)));
  }
  return batch;
}

}  // namespace pronghorn
