// Rotary positions (arXiv 2104.09864): the angles of channel pairs, scaled for contexts longer than
// a model was trained on, and the operator that turns by them.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// How the angles change for longer contexts. f_i = theta^(-2 i / rotary_dim) are those of pair i
// per position without scaling, L the context of the training, s the factor.
struct RopeScaling {
  enum class Kind {
    none,
    linear,       // f_i / s (arXiv 2306.15595)
    dynamic_ntk,  // theta grows with the context, see `context`
    yarn,         // fast pairs stay, slow ones are divided by s, a ramp between (arXiv 2309.00071)
    llama3,       // the same by wavelength (arXiv 2407.21783)
    longrope      // a divisor for each pair (arXiv 2402.13753)
  };
  Kind kind = Kind::none;
  double factor = 1;             // s
  int64_t original_context = 0;  // L, tokens
  // dynamic_ntk and longrope: tokens of the longest sequence. What they do depends on it, so it is
  // fixed beforehand: a token's angles may not depend on how long its sequence becomes. Up to L,
  // theta stays and the short divisors are used; beyond it, for every token of every sequence,
  // theta is multiplied by (s context / L - (s - 1))^(d / (d - 2)), and the long divisors are used.
  int64_t context = 0;                   // 0: L
  double beta_fast = 32, beta_slow = 1;  // yarn: turns in L at the two ends of the ramp
  bool truncate = true;                  // yarn: the ramp begins and ends at whole pairs
  double low_frequency_factor = 1, high_frequency_factor = 4;  // llama3: turns in L, likewise
  // yarn, longrope: factor on what is turned; 0: 0.1 ln s + 1 and sqrt(1 + ln s / ln L).
  double attention_factor = 0;
  std::vector<double> short_factors, long_factors;  // longrope: divisors, one per pair
};

struct RotaryAngles {
  std::vector<double> frequencies;  // radians per position, one per pair of channels
  float magnitude = 1;              // factor on what is turned
  // Pairs are neighbouring channels; otherwise they lie half the rotary channels apart.
  bool interleaved = false;
  // The frequencies are meant for positions below it.
  int64_t context = std::numeric_limits<int64_t>::max();

  int64_t rotary_dim() const { return 2 * static_cast<int64_t>(frequencies.size()); }
};
using SharedAngles = std::shared_ptr<const RotaryAngles>;

// rotary_dim: channels that are turned, even. Throws Error for settings that give no angles.
SharedAngles rotary_angles(double theta, int64_t rotary_dim, const RopeScaling& scaling = {},
                           bool interleaved = false);

// Within each head of head_dim columns, pair i of the first rotary_dim() channels turns by
// positions[row] frequencies[i], computed in float64, and is multiplied by the magnitude. The other
// channels pass.
// axes: positions of a row, one after another, in as many dimensions (2-D: arXiv 2403.13298, the
// axial form of section 3.2). Of P pairs, pair a P / axes + j turns by positions[row, a]
// frequencies[axes j], which is theta^(-2 j / (rotary_dim / axes)) where they are not scaled.
Tensor rope(const Context& context, const Tensor& x, std::span<const int32_t> positions,
            int64_t head_dim, const SharedAngles& angles, int64_t axes = 1);

}  // namespace pronghorn
