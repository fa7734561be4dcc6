// The regular part of Oniguruma's patterns, which needs no going back: characters, classes,
// alternatives, greedy and possessive repetition, a look at the next character. Patterns that cut
// texts into words are nearly all of this kind.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "formats/code_ranges.h"

namespace pronghorn {

// A pattern as a graph that is walked along a text (Thompson, "Regular expression search
// algorithm", 1968). Of several ways the one that Oniguruma would find first counts.
struct PatternGraph {
  enum class Kind : uint8_t {
    character,   // one of `set`, then `next`
    fork,        // `next`, or else `other`
    before,      // goes on to `next` if the next character is one of `set`
    not_before,  // ... if it is not, or the text ends
    end,         // a match
  };
  struct Node {
    Kind kind = Kind::end;
    uint16_t set = 0, next = 0, other = 0;
  };
  std::vector<Node> nodes;
  uint16_t start = 0;
  std::vector<CodeRanges> sets;
};

// Nothing for a pattern that has other parts, or that is large: it is Oniguruma's. pattern: one
// that the library compiles. Classes are those of the library.
std::optional<PatternGraph> parse_pattern(std::string_view pattern);

}  // namespace pronghorn
