#include "formats/code_ranges.h"

#include <algorithm>

namespace pronghorn {

CodeRanges sorted_ranges(CodeRanges ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const CodeRange& a, const CodeRange& b) { return a.first < b.first; });
  CodeRanges out;
  for (const CodeRange& range : ranges) {
    if (!out.empty() && range.first <= out.back().last + 1) {
      out.back().last = std::max(out.back().last, range.last);
    } else {
      out.push_back(range);
    }
  }
  return out;
}

CodeRanges union_of(const CodeRanges& a, const CodeRanges& b) {
  CodeRanges both = a;
  both.insert(both.end(), b.begin(), b.end());
  return sorted_ranges(std::move(both));
}

CodeRanges complement_of(const CodeRanges& ranges) {
  CodeRanges out;
  uint32_t next = 0;
  for (const CodeRange& range : ranges) {
    if (range.first > next) out.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLastCode) out.push_back({next, kLastCode});
  return out;
}

CodeRanges intersection_of(const CodeRanges& a, const CodeRanges& b) {
  return complement_of(union_of(complement_of(a), complement_of(b)));
}

}  // namespace pronghorn
