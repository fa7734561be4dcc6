// Mixers in models that see both ways.
#pragma once

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
// Whether it is one that scanned() has made (layers/scans.h), which keeps no state.
bool runs_both_ways(const Mixer& mixer);

}  // namespace pronghorn
