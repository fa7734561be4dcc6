// Positions of training windows that stand for parts of longer texts (PoSE, arXiv 2309.10400,
// section 3.2): a window is cut into chunks, and between two chunks positions are skipped.
#pragma once

#include <cstdint>
#include <vector>

namespace pronghorn {

struct SkippedPositions {
  int64_t skip = 0;    // positions are below it: the context to be learned; 0: none are skipped
  int64_t chunks = 2;  // of a window, shorter ones excepted
};

// The positions of training example `index`, `length` of them, a function of these arguments alone.
// The chunks have any lengths, and chunk i begins u_i positions late, u_0 = 0 and u_i evenly from
// u_(i-1) ... skip - length; what is read stays as it is (the paper's v_i = 0). length <= skip, or
// skip = 0.
std::vector<int32_t> skipped_positions(const SkippedPositions& options, uint64_t seed,
                                       uint64_t index, int64_t length);

}  // namespace pronghorn
