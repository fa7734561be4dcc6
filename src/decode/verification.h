// From guesses and the model's scores to tokens, exactly as the model alone would have chosen them.
#pragma once

#include <cstdint>
#include <functional>

#include "decode/drafter.h"

namespace pronghorn {

// Rule of plain and coupled decoding: at the text's end, and then at each guess that came true, the
// model's own token is taken; it is exact for any drafter, since a guess only decides whether the
// scores after it are already there.
//   choose(node): the model's token after a node of the draft (-1: after the text)
//   take(token): adds it to the text; false if the text ends with it
// Returns the nodes that came true and are followed by a token taken, in order. An empty draft
// takes one token: plain decoding.
std::vector<int32_t> take_matching(const Draft& draft,
                                   const std::function<int32_t(int32_t node)>& choose,
                                   const std::function<bool(int32_t token)>& take);

// Block verification of a chain (Sun et al., arXiv 2403.10444): how many guesses to accept, and the
// token that follows them. Exact in distribution if the guesses were drawn from draft.distributions
// (or are the drafter's only choice), which accepts more of them than comparing does.
//   distributions: the model's, after the text and after each guess
//   uniform(i): independent numbers in [0, 1), i = 0 ... guesses; none of them seen by the drafter
struct BlockVerdict {
  size_t accepted = 0;
  int32_t next = 0;
};
BlockVerdict verify_block(const Draft& draft, std::span<const TokenDistribution> distributions,
                          const std::function<double(size_t i)>& uniform);

}  // namespace pronghorn
