// Regular expressions as parts of a grammar.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "grammar/grammar_rules.h"

namespace pronghorn {

// Adds an expression of the texts in which the pattern is found, as JSON Schema has it: anywhere,
// unless ^ and $ say otherwise. The subset of ECMA-262 that is regular: characters, classes, \d \w
// \s and their opposites, groups, choices, repeats; ^ and $ at the ends of the pattern or of its
// choices. characters: makes an expression of one character of a set. Throws UsageError(where) for
// what is malformed or not of this subset.
int32_t add_pattern(GrammarRules& rules, std::string_view pattern,
                    const std::function<int32_t(const CodeSet&)>& characters,
                    std::string_view where);

}  // namespace pronghorn
