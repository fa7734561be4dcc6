// Tokens that a tokenizer matches as whole strings before anything else: special ones such as
// "<|endoftext|>", and words added after training.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "formats/trie.h"

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

// Finds added tokens in texts: from left to right, at each place the longest. A match that does not
// count (a special token where none are wanted, a word inside a word) hides what lies in it, as in
// the reference. Spaces and letters are those of Unicode.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  // Tokens with an empty text are omitted.
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  // Cuts `text` into parts, which view it; empty parts are omitted. special: match special tokens
  // too.
  std::vector<TextPart> split(std::string_view text, bool special) const;
  bool empty() const { return tokens_.empty(); }

 private:
  std::vector<AddedToken> tokens_;
  Trie trie_;  // texts of tokens, with their places
};

// Reads added tokens: an array of objects with an id, or (tokenizer_config.json) an object of them
// by id. vocabulary: number of ids before them; ids far beyond it are refused. Throws Error.
std::vector<AddedToken> read_added_tokens(const nlohmann::json& list, const std::string& where,
                                          size_t vocabulary);

// Tokens that files beside the vocabulary name.
struct SideTokens {
  // added_tokens_decoder of tokenizer_config.json, or else added_tokens.json.
  std::vector<AddedToken> by_id;
  // Special ones without an id (-1): the values of bos_token and other keys that end in "_token",
  // additional_special_tokens and extra_special_tokens of tokenizer_config.json, and, where that
  // has no added_tokens_decoder, of special_tokens_map.json.
  std::vector<AddedToken> named;
  std::string bos, eos, unknown;  // among these; may be empty
};
// config: tokenizer_config.json; the others may be null. Throws Error.
SideTokens read_side_tokens(const nlohmann::json& config, const nlohmann::json& special_map,
                            const nlohmann::json& added, const std::string& where,
                            size_t vocabulary);

}  // namespace pronghorn
