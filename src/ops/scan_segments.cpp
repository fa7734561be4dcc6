#include "ops/scan_segments.h"

#include <algorithm>

namespace pronghorn {

ScanCheckpoints::ScanCheckpoints(const CheckedBatch& batch, int64_t chunk, int64_t state_size) {
  int64_t count = 0, next = 0;
  for (const Segment& segment : batch.segments()) {
    count += std::max<int64_t>(0, segment.length - 1) / chunk;
  }
  states = Tensor::empty({count, state_size});
  for (const Segment& segment : batch.segments()) {
    std::vector<ReplaySnapshot>& own = snapshots.emplace_back();
    for (int64_t t = chunk; t < segment.length; t += chunk) own.push_back({t, states.row(next++)});
  }
}

PooledVector<ScanSegment> fresh_scan_segments(const CheckedBatch& batch,
                                              const ScanCheckpoints* checkpoints) {
  PooledVector<ScanSegment> segments;
  for (size_t i = 0; i < batch.segments().size(); ++i) {
    const Segment& segment = batch.segments()[i];
    if (segment.state != nullptr || segment.length == 0) continue;
    ScanSegment& to = segments.emplace_back();
    to.first_row = segment.first_row;
    to.length = segment.length;
    if (checkpoints != nullptr) to.snapshots = checkpoints->snapshots[i];
  }
  return segments;
}

ForkedScan::ForkedScan(const CheckedBatch& batch, int64_t size, std::span<ScanSegment> segments)
    : forks_(batch) {
  if (!forks_.any()) return;
  states_ = forks_.room(size);
  forks_.link(states_, segments);
}

Tensor ForkedScan::take_gradients(std::span<ScanSegment> segments) const {
  if (!forks_.any()) return {};
  const Tensor gradients = Tensor::zeros(states_.shape());
  forks_.link_gradients(gradients, segments);
  return gradients;
}

void add_scan_segments(std::span<const ReplayRun> runs, PooledVector<ScanSegment>& segments) {
  for (const ReplayRun& run : runs) {
    ScanSegment& to = segments.emplace_back();
    to.first_row = run.first_row;
    to.length = run.length;
    to.state_in = run.anchor;
    to.state_out = run.live;
    to.snapshots = run.snapshots;
    to.journal_rows = run.rows.data();
    to.journal_from = run.first_kept();
    if (!run.parents.empty()) to.parents = run.parents.data();
  }
}

}  // namespace pronghorn
