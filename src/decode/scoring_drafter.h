// What drafters that run a network share: guesses are made level by level of the tree, each from
// scores of the tokens after one node.
#pragma once

#include <span>
#include <vector>

#include "decode/drafter.h"

namespace pronghorn {

class ScoringDrafter : public Drafter {
 public:
  int costly_kind() const final { return 0; }
  void draft(const Context& context, std::span<DraftRequest> requests) final;

 protected:
  // Scores are wanted of the tokens after `nodes` of a request's draft: all those of one depth
  // that are to have children, or the text itself (-1) at level 0.
  struct Asked {
    DraftRequest* request;
    std::vector<int32_t> nodes;
  };
  // One row [vocab_size] of scores for each node asked for, in order. level: depth of the nodes.
  virtual Tensor scores(const Context& context, int64_t level, std::span<const Asked> asked) = 0;
  // All requests are answered.
  virtual void finish(std::span<DraftRequest>) {}

  // Tokens from `node` of a draft up to its first, in the order of the text.
  static std::vector<int32_t> path_to(const Draft& draft, int32_t node);
};

}  // namespace pronghorn
