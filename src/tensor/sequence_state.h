// SequenceState: everything one sequence carries through a model: the journals of every layer.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tensor/journal.h"

namespace pronghorn {

// The journals of each layer of a model, in order; shared by all its states. `fingerprint` tells
// models apart, so that a state saved by one is not loaded into another.
struct StateLayout {
  std::vector<std::vector<JournalShape>> layers;
  uint64_t fingerprint = 0;
};

// A value: a copy is a fork or a mark to roll back to, and shares memory until either is changed.
//
//   SequenceState mark = state;   // remember
//   model.forward(...)            // append anything
//   state = mark;                 // roll back: to the bit as if never appended
class SequenceState {
 public:
  SequenceState() = default;
  explicit SequenceState(std::shared_ptr<const StateLayout> layout);

  // Tokens consumed so far (committed ones: the nodes of an uncommitted tree do not count).
  int64_t length() const { return length_; }
  void advance(int64_t tokens) { length_ += tokens; }

  Journal& journal(int64_t layer, int64_t index);
  const std::vector<std::vector<Journal>>& layers() const { return layers_; }

  // Forgets the tokens from `length` on. Any attention state can; a recurrence holds what is needed
  // to go back kExactStep tokens, and further back throws Error: keep a copy instead.
  void truncate(int64_t length);

  // After a step over a token tree: keeps the nodes of `path` (root first), forgets the others.
  void commit(std::span<const int32_t> path);

  // Bytes of all journals.
  int64_t bytes() const;

  // A self-contained byte string, with a checksum; load throws Error on anything unexpected.
  std::string save() const;
  static SequenceState load(std::span<const std::byte> bytes,
                            std::shared_ptr<const StateLayout> layout, std::string_view where);

 private:
  std::shared_ptr<const StateLayout> layout_;
  std::vector<std::vector<Journal>> layers_;
  int64_t length_ = 0;
};

}  // namespace pronghorn
