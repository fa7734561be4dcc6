// Mixers in models that see both ways.
#pragma once

#include <memory>

#include "layers/layer.h"

namespace pronghorn {

// A capability: a mixer whose rows see what Segment::mask says. Whoever needs it asks with
// dynamic_cast, or with sees_both_ways().
class SeesBothWays {
 public:
  virtual ~SeesBothWays() = default;
  virtual bool sees_both_ways() const = 0;
};

bool sees_both_ways(const Mixer& mixer);
// Whether it is one that both_ways() has made, which keeps no state.
bool runs_both_ways(const Mixer& mixer);

// A mixer that sees both ways, of two that do not:
//   forward(x) + reversed(backward(reversed(x))),
// where reversed() turns the rows of each segment round (as in BiMamba, arXiv 2401.09417, section
// 3.3). backward null: forward does both. What layers carry goes along in each direction. It has no
// state: its forward throws Error for a segment with one. Neither may lend or borrow keys.
std::unique_ptr<Mixer> both_ways(std::unique_ptr<Mixer> forward, std::unique_ptr<Mixer> backward);

}  // namespace pronghorn
