// The ids of words that one call has met: text repeats its words.
#pragma once

#include <xxhash.h>

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace pronghorn {

class WordCache {
 public:
  // Appends the ids of a word to `ids`; false if it is not known.
  bool append(std::string_view text, std::vector<int32_t>& ids) const {
    if (table_.empty()) return false;
    const Word& word = table_[find(text)];
    if (word.text.data() == nullptr) return false;
    ids.insert(ids.end(), ids_.begin() + word.begin, ids_.begin() + word.end);
    return true;
  }

  // Remembers a word that is not known, unless there are too many or it is too long. It is not
  // copied: the text must live as long as the cache.
  void add(std::string_view text, std::span<const int32_t> ids) {
    if (count_ >= kMost || text.size() > kLongest) return;
    if (2 * (count_ + 1) > table_.size()) grow();
    Word& word = table_[find(text)];
    if (word.text.data() != nullptr) return;
    const auto begin = static_cast<uint32_t>(ids_.size());
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    word = {text, begin, static_cast<uint32_t>(ids_.size())};
    ++count_;
  }

  static constexpr size_t kLongest = 64;  // bytes of a word

 private:
  static constexpr size_t kFirst = 256, kMost = size_t{1} << 16;
  struct Word {
    std::string_view text;
    uint32_t begin = 0, end = 0;  // of its ids
  };

  // The place of the word, or the empty one where it would be.
  size_t find(std::string_view text) const {
    const size_t mask = table_.size() - 1;
    for (size_t at = XXH3_64bits(text.data(), text.size());; ++at) {
      const Word& word = table_[at & mask];
      if (word.text.data() == nullptr || word.text == text) return at & mask;
    }
  }

  void grow() {
    std::vector<Word> old(table_.empty() ? kFirst : 2 * table_.size());
    std::swap(old, table_);
    for (const Word& word : old) {
      if (word.text.data() != nullptr) table_[find(word.text)] = word;
    }
  }

  std::vector<Word> table_;  // open addressing, a power of two
  std::vector<int32_t> ids_;
  size_t count_ = 0;
};

}  // namespace pronghorn
