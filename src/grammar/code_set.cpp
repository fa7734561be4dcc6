#include "grammar/code_set.h"

#include <algorithm>
#include <string>

#include "formats/utf8.h"

namespace pronghorn {
namespace {

constexpr uint32_t kFirstSurrogate = 0xD800, kLastSurrogate = 0xDFFF;

// UTF-8 of first ... last, which have the same length: cut where a byte behind the first that
// differs does not run through all of its values.
void add_sequences(uint32_t first, uint32_t last, std::vector<ByteSequence>& sequences) {
  const bool ascii = last < 0x80;
  for (int behind = 1; !ascii && behind < 4; ++behind) {
    const uint32_t low = (uint32_t{1} << (6 * behind)) - 1;
    if ((first & ~low) == (last & ~low)) continue;
    if ((first & low) != 0) {
      add_sequences(first, first | low, sequences);
      return add_sequences((first | low) + 1, last, sequences);
    }
    if ((last & low) != low) {
      add_sequences(first, (last & ~low) - 1, sequences);
      return add_sequences(last & ~low, last, sequences);
    }
  }
  std::string from, to;
  append_utf8(first, from);
  append_utf8(last, to);
  ByteSequence sequence;
  sequence.length = static_cast<int>(from.size());
  for (size_t i = 0; i < from.size(); ++i) {
    sequence.bytes[i] = {static_cast<uint8_t>(from[i]), static_cast<uint8_t>(to[i])};
  }
  sequences.push_back(sequence);
}

}  // namespace

void CodeSet::add(uint32_t first, uint32_t last) {
  last = std::min(last, kLast);
  if (first <= kLastSurrogate && last >= kFirstSurrogate) {
    if (first < kFirstSurrogate) add(first, kFirstSurrogate - 1);
    if (last > kLastSurrogate) add(kLastSurrogate + 1, last);
    return;
  }
  if (first > last) return;
  auto at = std::ranges::lower_bound(ranges_, first, {},
                                     [](const Range& range) { return range.last + 1; });
  Range added{first, last};
  auto end = at;
  while (end != ranges_.end() && end->first <= last + 1) {
    added.first = std::min(added.first, end->first);
    added.last = std::max(added.last, end->last);
    ++end;
  }
  at = ranges_.erase(at, end);
  ranges_.insert(at, added);
}

void CodeSet::add(const CodeSet& other) {
  for (const Range& range : other.ranges_) add(range.first, range.last);
}

bool CodeSet::contains(uint32_t code) const {
  const auto at = std::ranges::lower_bound(ranges_, code, {}, &Range::last);
  return at != ranges_.end() && at->first <= code;
}

uint64_t CodeSet::size() const {
  uint64_t count = 0;
  for (const Range& range : ranges_) count += range.last - range.first + 1;
  return count;
}

CodeSet CodeSet::complement() const {
  CodeSet result;
  uint32_t next = 0;
  for (const Range& range : ranges_) {
    if (range.first > next) result.add(next, range.first - 1);
    next = range.last + 1;
  }
  if (next <= kLast) result.add(next, kLast);
  return result;
}

CodeSet CodeSet::without(const CodeSet& other) const { return common(other.complement()); }

CodeSet CodeSet::common(const CodeSet& other) const {
  CodeSet result;
  for (const Range& a : ranges_) {
    for (const Range& b : other.ranges_) {
      const uint32_t first = std::max(a.first, b.first), last = std::min(a.last, b.last);
      if (first <= last) result.add(first, last);
    }
  }
  return result;
}

std::vector<ByteSequence> utf8_sequences(const CodeSet& set) {
  constexpr uint32_t kLengths[] = {0x80, 0x800, 0x10000, CodeSet::kLast + 1};
  std::vector<ByteSequence> sequences;
  for (const CodeSet::Range& range : set.ranges()) {
    uint32_t first = range.first;
    for (const uint32_t end : kLengths) {
      if (first >= end || first > range.last) continue;
      add_sequences(first, std::min(range.last, end - 1), sequences);
      first = end;
    }
  }
  return sequences;
}

}  // namespace pronghorn
