// Sets of code points, and the bytes that write their members.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace pronghorn {

// A set of Unicode code points without surrogates, as ranges that are sorted and apart.
class CodeSet {
 public:
  static constexpr uint32_t kLast = 0x10FFFF;
  struct Range {
    uint32_t first, last;
    bool operator==(const Range&) const = default;
  };

  CodeSet() = default;
  CodeSet(uint32_t first, uint32_t last) { add(first, last); }

  void add(uint32_t first, uint32_t last);
  void add(uint32_t code) { add(code, code); }
  void add(const CodeSet& other);

  bool contains(uint32_t code) const;
  bool empty() const { return ranges_.empty(); }
  uint64_t size() const;
  const std::vector<Range>& ranges() const { return ranges_; }

  CodeSet complement() const;
  CodeSet without(const CodeSet& other) const;
  CodeSet common(const CodeSet& other) const;

 private:
  std::vector<Range> ranges_;
};

// Bytes of one place in the UTF-8 of a range of code points.
struct ByteRange {
  uint8_t first, last;
  bool operator==(const ByteRange&) const = default;
};

// UTF-8 of a set of code points: each sequence of 1 to 4 byte ranges stands for all its
// combinations; together they stand for each member once.
struct ByteSequence {
  int length = 0;
  std::array<ByteRange, 4> bytes{};
};
std::vector<ByteSequence> utf8_sequences(const CodeSet& set);

}  // namespace pronghorn
