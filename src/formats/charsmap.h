// SentencePiece's compiled normalisation rules ("precompiled_charsmap"): a trie of texts to be
// replaced (Darts-clone: a double array of 32-bit units), and their replacements, each ended by a
// zero byte.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn {

class Charsmap {
 public:
  Charsmap() = default;  // without rules
  // Checks that no walk from any unit leaves the tables. Throws Error.
  Charsmap(std::string_view rules, const std::string& where);

  bool empty() const { return units_.empty(); }

  // Whether a rule may begin with this byte.
  bool may_begin(unsigned char byte) const;

  struct Match {
    size_t length = 0;  // bytes of the text that the rule replaces
    std::string_view replacement;
  };
  // The rule for the longest, or the shortest, beginning of the text that has one.
  std::optional<Match> longest(std::string_view text) const { return find(text, true); }
  std::optional<Match> shortest(std::string_view text) const { return find(text, false); }

  // The text as the normaliser "Precompiled" of the tokenizers library makes it: user-perceived
  // characters of less than six bytes are looked up whole, and by the shortest rule; others, and
  // those without a rule, character by character.
  std::string apply(std::string_view text) const;

 private:
  std::optional<Match> find(std::string_view text, bool longest) const;

  std::vector<uint32_t> units_;
  std::string strings_;
};

}  // namespace pronghorn
