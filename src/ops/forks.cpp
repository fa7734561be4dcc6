#include "ops/forks.h"

#include <algorithm>
#include <utility>

#include "ops/pointwise.h"

namespace pronghorn {

bool has_forks(const CheckedBatch& batch) {
  return std::ranges::any_of(batch.segments(),
                             [](const Segment& segment) { return segment.after >= 0; });
}

StateForks::StateForks(const CheckedBatch& batch) {
  if (!has_forks(batch)) return;
  std::vector<int64_t> numbers(batch.segments().size(), -1);  // among those with a link
  for (size_t i = 0; i < batch.segments().size(); ++i) {
    const Segment& segment = batch.segments()[i];
    if (segment.state != nullptr || segment.length == 0) continue;
    numbers[i] = std::ssize(links_);
    Link& link = links_.emplace_back();
    if (segment.after < 0) continue;
    Link& before = links_[static_cast<size_t>(numbers[static_cast<size_t>(segment.after)])];
    if (before.to < 0) before.to = kept_++;
    link.from = before.to;
  }
  // Which segment leaves a state, and the first that those from here on go on from.
  std::vector<size_t> leaves(static_cast<size_t>(kept_));
  for (size_t i = 0; i < links_.size(); ++i) {
    if (links_[i].to >= 0) leaves[static_cast<size_t>(links_[i].to)] = i;
  }
  size_t first = links_.size();
  for (size_t i = links_.size(); i-- > 0;) {
    if (links_[i].from >= 0) first = std::min(first, leaves[static_cast<size_t>(links_[i].from)]);
    links_[i].follows = first < i;
  }
}

PrecededSegments::PrecededSegments(const CheckedBatch& batch, int64_t count) : batch_(Batch()) {
  const std::span<const Segment> segments = batch.segments();
  Batch preceded;
  for (const Segment& segment : segments) {
    std::vector<int32_t> before;  // from the last on
    for (int64_t from = segment.after; from >= 0;) {
      const Segment& earlier = segments[static_cast<size_t>(from)];
      for (int64_t i = earlier.length; i-- > 0 && std::ssize(before) < count;) {
        before.push_back(static_cast<int32_t>(earlier.first_row + i));
      }
      from = std::ssize(before) < count ? earlier.after : -1;
    }
    Segment own = segment;
    own.after = -1;
    own.first_row = std::ssize(rows_);
    own.length += std::ssize(before);
    rows_.insert(rows_.end(), before.rbegin(), before.rend());
    for (int64_t i = 0; i < segment.length; ++i) {
      places_.push_back(static_cast<int32_t>(rows_.size()));
      rows_.push_back(static_cast<int32_t>(segment.first_row + i));
    }
    preceded.segments.push_back(std::move(own));
  }
  for (const int32_t row : rows_) {
    preceded.positions.push_back(batch.positions()[static_cast<size_t>(row)]);
  }
  batch_ = CheckedBatch(std::move(preceded));
}

Tensor PrecededSegments::rows(const Context& context, const Tensor& x) const {
  return embedding(context, x, rows_);
}

Tensor PrecededSegments::own(const Context& context, const Tensor& y) const {
  return embedding(context, y, places_);
}

}  // namespace pronghorn
