// Sets of characters as sorted ranges of code points, such as those of a class in a pattern.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/unicode_tables.h"

namespace pronghorn {

constexpr uint32_t kLastCode = 0x10FFFF;

// Sorted; ranges neither overlap nor touch.
using CodeRanges = std::vector<CodeRange>;

// Sorts ranges, which may overlap, and joins those that touch.
CodeRanges sorted_ranges(CodeRanges ranges);
// What is in either, in both, and in none.
CodeRanges union_of(const CodeRanges& a, const CodeRanges& b);
CodeRanges intersection_of(const CodeRanges& a, const CodeRanges& b);
CodeRanges complement_of(const CodeRanges& ranges);

}  // namespace pronghorn
