// What happens to a text before byte-pair encoding: normalisation, and cutting it into pieces that
// are encoded apart. Both as a Hugging Face tokenizer.json describes them.
#pragma once

#include <deque>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "formats/regex.h"
#include "formats/tokenizer.h"

namespace pronghorn {

std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

// Supported: Prepend, Replace, Strip, NFC (for text that is in this form already, as nearly all
// text is: composing is not done), and sequences of them.
class Normalizer {
 public:
  // description: "normalizer" of tokenizer.json; null for none. Throws Error for other types.
  Normalizer(const nlohmann::json& description, const std::string& where);

  bool empty() const { return steps_.empty(); }
  // begins: false for a text that continues another; then nothing is put before it.
  std::string apply(std::string_view text, bool begins) const;

 private:
  struct Step {
    enum class Kind { kPrepend, kReplace, kReplaceRegex, kStrip } kind;
    std::string from, to;
    std::vector<Regex> regex;  // one for kReplaceRegex
    bool left = false, right = false;
  };
  void add(const nlohmann::json& description, const std::string& where);
  std::vector<Step> steps_;
};

// Supported: ByteLevel, Split, Digits, Punctuation, Metaspace, and sequences of them.
class PreTokenizer {
 public:
  // description: "pre_tokenizer" of tokenizer.json; null for none. Throws Error for other types.
  PreTokenizer(const nlohmann::json& description, const std::string& where);

  // Cuts `text`, which must be UTF-8, into pieces. They view the text, or strings added to `store`.
  // after: what the text stands behind.
  std::vector<std::string_view> split(std::string_view text, After after,
                                      std::deque<std::string>& store) const;

  // True if pieces are bytes for a vocabulary in the byte alphabet.
  bool byte_level() const { return byte_level_; }

 private:
  enum class Behavior { kIsolated, kRemoved, kContiguous, kWithPrevious, kWithNext };
  struct Step {
    enum class Kind { kSplit, kByteLevel, kMetaspace } kind = Kind::kSplit;
    std::vector<Regex> regex;  // one, or none if nothing is cut
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;
    bool in_alphabet = false;  // cuts the text as written in the byte alphabet
    bool add_space = false;    // ByteLevel
    std::string replacement;   // Metaspace
    enum class Prepend { kNever, kFirst, kAlways } prepend = Prepend::kNever;
  };
  void add(const nlohmann::json& description, const std::string& where);
  static void cut(const Step& step, std::string_view text, std::vector<std::string_view>& pieces);
  static void apply(const Step& step, std::string_view piece, After after,
                    std::deque<std::string>& store, std::vector<std::string_view>& pieces);

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace pronghorn
