// Numbers by text: a hash table that views its texts.
#pragma once

#include <xxhash.h>

#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace pronghorn {

class TextIndex {
 public:
  TextIndex() = default;
  // For this many texts, which must outlive the table.
  explicit TextIndex(size_t count) : table_(std::bit_ceil(2 * count + 16)) {}

  // False, and nothing is changed, if the text is there.
  bool add(std::string_view text, int32_t number) {
    Entry& entry = table_[place(text)];
    if (entry.number >= 0) return false;
    entry = {text, tag(hash(text)), number};
    return true;
  }
  // The number, or -1.
  int32_t find(std::string_view text) const {
    return table_.empty() ? -1 : table_[place(text)].number;
  }

 private:
  struct Entry {
    std::string_view text;
    uint32_t tag = 0;
    int32_t number = -1;
  };
  static uint64_t hash(std::string_view text) { return XXH3_64bits(text.data(), text.size()); }
  static uint32_t tag(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }

  size_t place(std::string_view text) const {
    const uint64_t value = hash(text);
    const size_t mask = table_.size() - 1;
    for (size_t at = value;; ++at) {
      const Entry& entry = table_[at & mask];
      if (entry.number < 0 || (entry.tag == tag(value) && entry.text == text)) return at & mask;
    }
  }

  std::vector<Entry> table_;  // open addressing, a power of two, at most half full
};

}  // namespace pronghorn
