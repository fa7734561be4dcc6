// Segments that go on from others of their batch (Segment::after): a text that is read once, and
// several ways in which it goes on from places in it, with gradients through all. Together they are
// a tree whose nodes are segments.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// Where operators with a state begin and leave their segments without one: what a segment leaves is
// kept for those that go on from it. Takes no memory if none does.
class StateForks {
 public:
  StateForks() = default;  // none
  explicit StateForks(const CheckedBatch& batch);

  bool any() const { return kept_ > 0; }
  // Room for the states of `size` numbers that others go on from, as zeros: these, or their
  // gradients.
  Tensor room(int64_t size) const { return Tensor::zeros({kept_, size}); }

  // Tells a kernel's segments where their states come from and go to. segments: those of the batch
  // that have rows and no state, in their order, and any after these.
  template <typename Segment>
  void link(const Tensor& states, std::span<Segment> segments) const {
    for (size_t i = 0; i < links_.size(); ++i) {
      segments[i].follows = links_[i].follows;
      if (links_[i].from >= 0) segments[i].state_in = states.row(links_[i].from);
      if (links_[i].to >= 0) segments[i].state_out = states.row(links_[i].to);
    }
  }
  // The same for the backward pass. A state's gradient is the sum of those that go on from it.
  template <typename Segment>
  void link_gradients(const Tensor& gradients, std::span<Segment> segments) const {
    for (size_t i = 0; i < links_.size(); ++i) {
      if (links_[i].from >= 0) segments[i].state_in_gradient = gradients.row(links_[i].from);
      if (links_[i].to >= 0) segments[i].state_out_gradient = gradients.row(links_[i].to);
    }
  }

 private:
  // Of a segment: rows of room(), -1: none; and whether it is in a tree with the segment before.
  struct Link {
    int64_t from = -1, to = -1;
    bool follows = false;
  };

  int64_t kept_ = 0;
  std::vector<Link> links_;  // empty: no segment goes on from another
};

// Rows of a batch, each segment that goes on from another behind the rows that come before it: for
// operators that look back by a few rows.
class PrecededSegments {
 public:
  // count: rows before each segment, fewer where its sequence has fewer.
  PrecededSegments(const CheckedBatch& batch, int64_t count);

  const CheckedBatch& batch() const { return batch_; }
  // The rows of that batch, of a tensor x with those of the first.
  Tensor rows(const Context& context, const Tensor& x) const;
  // The opposite: of a tensor with the rows of that batch.
  Tensor own(const Context& context, const Tensor& y) const;

 private:
  std::vector<int32_t> rows_, places_;
  CheckedBatch batch_;
};

// Whether a segment of a batch goes on from another.
bool has_forks(const CheckedBatch& batch);

}  // namespace pronghorn
