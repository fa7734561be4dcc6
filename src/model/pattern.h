// The pattern language: how blocks follow one another.
//
//   pattern := item*          item := [count] (letter | '[' pattern ']' | '(' pattern ')')
//
// A letter names a block, a count repeats, square brackets group, parentheses bracket a span that
// runs on a subsampled sequence. "2a 2[3m a] (4a) 2a"
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn {

// One step of the expanded pattern.
struct PatternStep {
  enum class Kind : uint8_t { block, open, close };
  Kind kind = Kind::block;
  char block = 0;
};

// Most blocks that a pattern may expand to: far above any published model.
constexpr int64_t kMaxBlocks = 4096;

// Throws Error(where, ...) that shows the place of the mistake.
std::vector<PatternStep> parse_pattern(std::string_view pattern, std::string_view where);

// The letters of the blocks in order, parentheses kept: "aammma".
std::string expanded_pattern(const std::vector<PatternStep>& steps);

// A short pattern that expands to these letters: "mmmammmaaa" -> "2[3m a] 2a".
std::string compressed_pattern(std::string_view letters);

}  // namespace pronghorn
