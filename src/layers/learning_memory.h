// What mixers with a memory that learns at test time offer beside Mixer.
#pragma once

#include "ops/fast_weight_memory.h"
#include "tensor/batch.h"

namespace pronghorn {

// A network in a layer that learns while a sequence is read, and the journal that it is kept in.
struct LearningMemory {
  JournalSlot slot;
  FastWeightMemoryOptions options;
};

// A capability: whoever looks for memories asks a mixer with dynamic_cast.
class HasLearningMemory {
 public:
  virtual ~HasLearningMemory() = default;
  virtual LearningMemory learning_memory() const = 0;
};

}  // namespace pronghorn
