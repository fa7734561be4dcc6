// Tokens that a tokenizer matches as whole strings before anything else: special ones such as
// "<|endoftext|>", and words added after training.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn {

struct AddedToken {
  int32_t id = 0;
  std::string content;      // its text
  bool special = false;     // matched only where special tokens are wanted
  bool normalized = false;  // matched after normalisation of the text, otherwise before
  bool left_strip = false, right_strip = false;  // takes the spaces before or after it too
  bool single_word = false;                      // no match inside a word
};

// A part of a text: one added token, or (id -1) text between them.
struct TextPart {
  std::string_view text;
  int32_t id = -1;
};

// Finds added tokens in texts: at each place the longest that matches.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  // Tokens with an empty text are left out.
  explicit AddedTokenMatcher(const std::vector<AddedToken>& tokens);

  // Cuts `text` into parts, which view it; empty parts are left out. special: match special tokens
  // too.
  std::vector<TextPart> split(std::string_view text, bool special) const;
  bool empty() const { return tokens_.empty(); }

 private:
  // The token that matches at `at`, or null.
  const AddedToken* match(std::string_view text, size_t at, bool special) const;

  std::vector<AddedToken> tokens_;                 // longest first
  std::vector<std::vector<uint32_t>> first_byte_;  // tokens by the first byte of their text
};

}  // namespace pronghorn
