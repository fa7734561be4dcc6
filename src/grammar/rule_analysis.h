// What is known of a grammar before it is compiled.
#pragma once

#include <cstdint>
#include <vector>

#include "grammar/grammar_rules.h"

namespace pronghorn {

// Rewrites repeats of what may be empty to repeats of what is not, for the same texts: then a
// repeat goes on by a byte at least each time, and nothing loops without one.
void remove_empty_repeats(GrammarRules& rules);

// Which expressions match some text, and which the empty text. Expressions come after their parts.
struct RuleAnalysis {
  explicit RuleAnalysis(const GrammarRules& rules);

  std::vector<bool> matches, empty;
};

}  // namespace pronghorn
