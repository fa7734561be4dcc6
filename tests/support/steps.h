// Ways to cut a sequence into steps, and sequences in a batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/random.h"
#include "tensor/batch.h"

namespace pronghorn::testing_support {

// `total` in steps of `step`, the last one shorter.
inline std::vector<int64_t> equal_steps(int64_t total, int64_t step) {
  std::vector<int64_t> steps;
  for (; total > 0; total -= steps.back()) steps.push_back(std::min(step, total));
  return steps;
}

// Steps of 1 to `longest` tokens, drawn at random, that add up to `total`.
inline std::vector<int64_t> random_steps(Random& random, int64_t total, int64_t longest) {
  std::vector<int64_t> steps;
  for (; total > 0; total -= steps.back()) {
    const auto step = static_cast<int64_t>(random.below(static_cast<uint64_t>(longest))) + 1;
    steps.push_back(std::min(step, total));
  }
  return steps;
}

// Fresh sequences of these lengths without a state, in causal order.
inline Batch batch_of(const std::vector<int64_t>& lengths) {
  Batch batch;
  for (const int64_t length : lengths) {
    Segment segment;
    segment.first_row = batch.rows();
    segment.length = length;
    batch.segments.push_back(segment);
    for (int64_t i = 0; i < length; ++i) batch.positions.push_back(static_cast<int32_t>(i));
  }
  return batch;
}

}  // namespace pronghorn::testing_support
