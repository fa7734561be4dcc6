// Gradients and moments over several ranks: the optimiser's state shared out (ZeRO-1, arXiv
// 1910.02054, section 5.1), and sums whose bits do not depend on how many ranks there are.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ranks.h"
#include "model/model.h"
#include "ops/optimizer_kernels.h"

namespace pronghorn {

// Numbers of a parameter, flat.
struct Part {
  int64_t begin = 0, count = 0;
};

// Which rank owns what of each parameter: it keeps its moments and makes its step. A parameter is
// cut between blocks, and each rank has about as much of it as the others.
class Ownership {
 public:
  // A power of two that kernels over flat spans cut at anyway, so that parts give the bits of the
  // whole.
  static constexpr int64_t kBlock = kSquaresBlock;

  Ownership(std::span<const Parameter> parameters, int64_t ranks);

  Part part(size_t parameter, int64_t rank) const;
  int64_t size(size_t parameter) const { return sizes_[parameter]; }

 private:
  int64_t ranks_;
  std::vector<int64_t> sizes_;
};

// The gradients of a step. The sequences of a step make `gradient_groups` groups, whose gradients
// are made one by one, group g by rank g mod count. They are added in the order of their numbers,
// whoever made them, so that the sum has the same bits on one rank or on several. Where ranks share
// sequences, some that follow one another make a group together, each the part of its rows; these
// are added in the order of the ranks, so that the sum has the same bits however many such teams
// there are.
class GradientSum {
 public:
  GradientSum(const Model& model, const Ownership& ownership, Ranks& ranks);

  // Takes the gradients of the group that this rank has just made, or its part of one, and clears
  // them: ranks have made groups in their order, next to those of the call before. Every rank calls
  // it as often.
  void add_round();

  // The gradient that this rank owns of a parameter: of the sum, or after no round of what the
  // backward pass has left. Empty if it has none of it.
  std::span<const float> part(size_t parameter) const;
  // Whether any group had a gradient of it.
  bool has(size_t parameter) const;

  // The sum of the squares of those parameters' gradients for which `counts` says so, the same
  // bits on any number of ranks.
  double sum_of_squares(const std::vector<bool>& counts) const;

  // After each rank has changed what it owns: gives every rank the parameters that have gradients.
  void share_parameters() const;

 private:
  const Model& model_;
  const Ownership& ownership_;
  Ranks& ranks_;
  bool summed_ = false;
  std::vector<bool> has_;
  std::vector<std::vector<float>> sums_;  // of the owned parts
};

}  // namespace pronghorn
