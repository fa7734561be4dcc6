// Segments of a kernel's list that begin with states that others leave.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

namespace pronghorn {

// The list in runs: a segment and those after it that follow (Segment::follows). Those of a run are
// for one thread after another, forward in their order and backward against it; runs do not depend
// on each other.
template <typename Segment>
class SegmentRuns {
 public:
  explicit SegmentRuns(std::span<const Segment> segments) : count_(std::ssize(segments)) {
    // Most lists have no segment that follows, and then take no memory here.
    if (std::ranges::none_of(segments, std::identity(), &Segment::follows)) return;
    for (int64_t i = 0; i < count_; ++i) {
      if (i == 0 || !segments[static_cast<size_t>(i)].follows) begins_.push_back(i);
    }
  }

  int64_t count() const { return begins_.empty() ? count_ : std::ssize(begins_); }

  // Calls body(i) for the numbers of a run's segments in the list, backward from the last on.
  template <typename Body>
  void for_each(int64_t run, bool backward, const Body& body) const {
    const auto [begin, end] = bounds(run);
    for (int64_t i = 0; i < end - begin; ++i) body(backward ? end - 1 - i : begin + i);
  }

 private:
  std::pair<int64_t, int64_t> bounds(int64_t run) const {
    if (begins_.empty()) return {run, run + 1};
    const auto at = static_cast<size_t>(run);
    return {begins_[at], at + 1 < begins_.size() ? begins_[at + 1] : count_};
  }

  int64_t count_;
  std::vector<int64_t> begins_;  // empty: each segment is a run
};

}  // namespace pronghorn
