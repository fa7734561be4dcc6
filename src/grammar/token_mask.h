// TokenMask: a set of tokens.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace pronghorn {

class TokenMask {
 public:
  explicit TokenMask(int64_t vocab_size = 0) : words_(static_cast<size_t>(vocab_size + 63) / 64) {}

  bool allows(int32_t token) const {
    const auto word = static_cast<size_t>(token) / 64;
    return token >= 0 && word < words_.size() && (words_[word] >> (token % 64) & 1) != 0;
  }
  // Nothing for a token that is none of the vocabulary.
  void allow(int32_t token) {
    const auto word = static_cast<size_t>(token) / 64;
    if (token >= 0 && word < words_.size()) words_[word] |= uint64_t{1} << (token % 64);
  }
  void forbid(int32_t token) {
    if (allows(token)) words_[static_cast<size_t>(token) / 64] &= ~(uint64_t{1} << (token % 64));
  }
  // Both must be of one vocabulary.
  void allow(const TokenMask& other) {
    for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
  }
  int64_t count() const {
    int64_t count = 0;
    for (const uint64_t word : words_) count += std::popcount(word);
    return count;
  }
  bool empty() const { return count() == 0; }
  size_t bytes() const { return words_.size() * sizeof(uint64_t); }

  // Calls visit(token) for each, in order.
  template <typename Visit>
  void for_each(const Visit& visit) const {
    for (size_t i = 0; i < words_.size(); ++i) {
      for (uint64_t word = words_[i]; word != 0; word &= word - 1) {
        visit(static_cast<int32_t>(i * 64) + std::countr_zero(word));
      }
    }
  }

 private:
  std::vector<uint64_t> words_;
};

}  // namespace pronghorn
