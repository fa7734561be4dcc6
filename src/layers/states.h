// StateScope: where layers register the journals that they keep of a sequence, as they register
// their parameters.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "tensor/batch.h"
#include "tensor/journal.h"

namespace pronghorn {

class StateScope {
 public:
  // layer: whose journals these are in a SequenceState. journals: receives them in the order in
  // which they are added; outlives the scope.
  StateScope(int64_t layer, std::vector<JournalShape>& journals)
      : layer_(layer), journals_(&journals) {}

  // Adds a journal; the slot is what its operator is given in a forward.
  JournalSlot add(JournalShape shape) const {
    journals_->push_back(std::move(shape));
    return {layer_, static_cast<int64_t>(journals_->size()) - 1};
  }

 private:
  int64_t layer_;
  std::vector<JournalShape>* journals_;
};

}  // namespace pronghorn
