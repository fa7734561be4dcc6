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
  // Whether it keeps keys and values of what it has read, so that a text may come in parts. Without
  // them it sees whole texts alone.
  virtual bool keeps_keys() const { return true; }
};

bool sees_both_ways(const Mixer& mixer);
// Whether it does, and keeps nothing of what it has read.
bool sees_whole_texts(const Mixer& mixer);
// Whether it is one that scanned() has made (layers/scans.h), with a state or without.
bool runs_both_ways(const Mixer& mixer);

}  // namespace pronghorn
