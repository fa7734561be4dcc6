// Decoders of a tokenizer.json: how the texts of tokens become the text of a sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "formats/regex.h"

namespace pronghorn {

// BPEDecoder, ByteFallback, ByteLevel, CTC, Fuse, Metaspace, Replace, Strip, WordPiece, and
// sequences of them.
class TokenDecoder {
 public:
  // description: "decoder" of tokenizer.json; null for none: then tokens stand with spaces between.
  // Throws Error.
  TokenDecoder(const nlohmann::json& description, const std::string& where);

  // The text of all tokens of a sequence. Bytes that are not UTF-8 become U+FFFD.
  std::string decode(std::vector<std::string> tokens) const;

  // What one token adds to the text of a sequence that arrives token by token: bytes as they are.
  // first: nothing came before it. previous: the token before it, or null if that is not known.
  std::string piece(std::string token, bool first, const std::string* previous) const;

 private:
  enum class Kind : uint8_t {
    bpe,
    byte_fallback,
    byte_level,
    ctc,
    fuse,
    metaspace,
    replace,
    strip,
    word_piece
  };
  struct Step {
    Kind kind = Kind::fuse;
    std::string text;                      // suffix, pad token, replacement, content, prefix
    std::string delimiter;                 // CTC
    std::shared_ptr<const Regex> pattern;  // Replace
    uint64_t start = 0, stop = 0;          // Strip
    bool flag = false;  // cleanup; Metaspace: the text begins with the replacement
  };
  static void apply(const Step& step, std::vector<std::string>& tokens);

  bool absent_;
  std::vector<Step> steps_;
};

// Text with each longest beginning of a character, or byte, that is not well-formed UTF-8 as U+FFFD
// (Unicode standard, table 3-8).
std::string replace_invalid_utf8(std::string_view text);

}  // namespace pronghorn
