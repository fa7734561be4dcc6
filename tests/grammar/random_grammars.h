// Random grammars, and vocabularies for them.
#pragma once

#include <string>
#include <vector>

#include "base/random.h"
#include "formats/tokenizer.h"
#include "formats/utf8.h"
#include "grammar/grammar_rules.h"

namespace pronghorn::testing_support {

// Tokens of the bytes that it is given.
class ListTokenizer final : public Tokenizer {
 public:
  explicit ListTokenizer(std::vector<std::string> tokens)
      : Tokenizer({}), tokens_(std::move(tokens)) {}

  std::vector<int32_t> encode(std::string_view, const EncodeOptions&) const override { return {}; }
  std::string token_bytes(int32_t id, bool) const override {
    return tokens_.at(static_cast<size_t>(id));
  }
  int64_t vocab_size() const override { return std::ssize(tokens_); }

 private:
  std::vector<std::string> tokens_;
};

// The 256 bytes, and `count` random strings of the letters of random grammars, some of them cut in
// the middle of a character.
inline std::shared_ptr<const Tokenizer> random_tokenizer(Random& random, size_t count) {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  const std::string letters[] = {"a", "b", "c", "\u00e9", "\u00e8", "\u6f22"};
  while (tokens.size() < 256 + count) {
    std::string text;
    const uint64_t length = 1 + random.below(random.below(8) == 0 ? 40 : 6);
    for (uint64_t i = 0; i < length; ++i) text += letters[random.below(6)];
    if (random.below(3) == 0) text.erase(0, 1);
    if (!text.empty() && random.below(3) == 0) text.pop_back();
    if (!text.empty()) tokens.push_back(text);
  }
  return std::make_shared<ListTokenizer>(std::move(tokens));
}

// Grammars of a few letters, some of them of several bytes. Rules begin with later rules only, so
// that there is no left recursion, and each has a choice that ends.
class RandomGrammar {
 public:
  explicit RandomGrammar(Random& random) : random_(random) {}

  GrammarRules make() {
    constexpr int32_t kRules = 4;
    for (int32_t i = 0; i < kRules; ++i) rules_.declare("r" + std::to_string(i));
    for (int32_t i = 0; i < kRules; ++i) {
      own_ = i;
      rules_.define(i, rules_.choice({any(3, true), terminal()}));
    }
    rules_.start = 0;
    return rules_;
  }

 private:
  int32_t terminal() {
    static const std::vector<std::string> kTexts = {"a", "b", "ab", "ba", "c", "\u00e9a", "\u6f22"};
    if (random_.below(3) == 0) {
      CodeSet set('a', 'a' + static_cast<uint32_t>(random_.below(3)));
      if (random_.below(2) == 0) set.add(0xE8, 0xE8 + static_cast<uint32_t>(random_.below(40)));
      return rules_.characters(set);
    }
    std::vector<std::string> texts;
    for (uint64_t i = 0; i <= random_.below(3); ++i) texts.push_back(kTexts[random_.below(7)]);
    return rules_.literals(std::move(texts));
  }

  // leftmost: nothing may have been read before it.
  int32_t any(int depth, bool leftmost) {
    if (depth == 0) return terminal();
    switch (random_.below(6)) {
      case 0:
        return rules_.choice({any(depth - 1, leftmost), any(depth - 1, leftmost)});
      case 1:
      case 2:
        // A literal in front lets any rule follow.
        return rules_.sequence({terminal(), any(depth - 1, false)});
      case 3:
        return rules_.sequence({any(depth - 1, leftmost), any(depth - 1, leftmost)});
      case 4: {
        const auto least = static_cast<int64_t>(random_.below(3));
        static constexpr int64_t kMore[] = {-1, 0, 1, 2, 40};
        const int64_t more = kMore[random_.below(5)];
        return rules_.repeat(any(depth - 1, leftmost), least, more < 0 ? more : least + more);
      }
      default: {
        const auto later = static_cast<uint64_t>(3 - own_);
        if (leftmost && later == 0) return terminal();
        const uint64_t rule =
            leftmost ? static_cast<uint64_t>(own_) + 1 + random_.below(later) : random_.below(4);
        return rules_.rule(static_cast<int32_t>(rule));
      }
    }
  }

  Random& random_;
  GrammarRules rules_;
  int32_t own_ = 0;
};

}  // namespace pronghorn::testing_support
