// What operators that scan (backend/scan.h) make of a batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/scan.h"
#include "ops/forks.h"
#include "ops/replay.h"
#include "tensor/batch.h"
#include "tensor/memory.h"
#include "tensor/tensor.h"

namespace pronghorn {

// States that a backward pass starts chunks from: after every `chunk` tokens of the segments
// without a state, for all multiples below their lengths.
struct ScanCheckpoints {
  ScanCheckpoints(const CheckedBatch& batch, int64_t chunk, int64_t state_size);

  Tensor states;                                       // [checkpoints, state_size]
  std::vector<std::vector<ReplaySnapshot>> snapshots;  // of each segment of the batch
};

// The segments without a state, with their checkpoints if there are any.
PooledVector<ScanSegment> fresh_scan_segments(const CheckedBatch& batch,
                                              const ScanCheckpoints* checkpoints = nullptr);

// Segments that go on from others, and the states that they go on from; mostly there are none.
class ForkedScan {
 public:
  ForkedScan() = default;
  // Links `segments`, those of fresh_scan_segments(), whose states have `size` numbers.
  ForkedScan(const CheckedBatch& batch, int64_t size, std::span<ScanSegment> segments);

  // Links them for the backward pass; what it returns holds the gradients of the states meanwhile.
  Tensor take_gradients(std::span<ScanSegment> segments) const;

 private:
  StateForks forks_;
  Tensor states_;
};

// Adds those that continue sequences: the kernel moves on their live states.
void add_scan_segments(std::span<const ReplayRun> runs, PooledVector<ScanSegment>& segments);

}  // namespace pronghorn
