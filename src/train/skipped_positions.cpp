#include "train/skipped_positions.h"

#include <algorithm>
#include <set>

#include "base/random.h"

namespace pronghorn {

std::vector<int32_t> skipped_positions(const SkippedPositions& options, uint64_t seed,
                                       uint64_t index, int64_t length) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;
  Random random(seed + index * kGolden, "skipped positions");
  const int64_t most = options.skip > 0 ? options.skip - length : 0;
  std::set<int64_t> begins;  // of the chunks after the first
  const int64_t chunks = most > 0 ? std::min(options.chunks, length) : 1;
  while (std::ssize(begins) < chunks - 1) {
    begins.insert(1 + static_cast<int64_t>(random.below(static_cast<uint64_t>(length - 1))));
  }
  std::vector<int32_t> positions;
  int64_t late = 0;
  for (int64_t i = 0; i < length; ++i) {
    if (begins.contains(i)) {
      late += static_cast<int64_t>(random.below(static_cast<uint64_t>(most - late) + 1));
    }
    positions.push_back(static_cast<int32_t>(i + late));
  }
  return positions;
}

}  // namespace pronghorn
