// Unmasking: which masked tokens of a text a diffusion model's scores decide, and for what.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "decode/sampling.h"

namespace pronghorn {

// What comes first among masked places. Of the model's distribution p at a place, p1 and p2 being
// its two largest probabilities:
enum class UnmaskOrder : uint8_t {
  confidence,  // p of the token that was drawn (LLaDA's low-confidence remasking, arXiv 2502.09992)
  entropy,     // sum p ln p (Dream, arXiv 2508.15487)
  margin,      // p1 - p2 (arXiv 2502.06768, section 4.1)
  random
};

// What would be written at a masked place.
struct Unmasking {
  int64_t position = 0;
  int32_t token = 0;
  double probability = 0;  // of the token, in the model's own distribution
  double rank = 0;         // what the order goes by: the largest first
};

// Draws the token of a place as sample() does, never `mask_token`. scores: of the vocabulary.
// noise: a number of this step; each has noise of its own. Probabilities are computed in float64.
Unmasking draw_unmasking(std::span<const float> scores, int32_t mask_token, UnmaskOrder order,
                         const SamplingOptions& sampling, std::span<const int32_t> recent,
                         int64_t position, uint64_t noise);

// Those that a step takes: the first `count` in order, and all whose token is at least `threshold`
// probable (arXiv 2505.22618, algorithm 1); threshold 0: no others. The earlier place comes first
// among equal ones.
std::vector<Unmasking> take_unmaskings(std::vector<Unmasking> all, int64_t count, double threshold);

}  // namespace pronghorn
