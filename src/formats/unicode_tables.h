// Character classes as the tokenizers library has them: it mixes several versions of Unicode.
// Source: scripts/make_unicode_tables.py, which asks the library about every character.
#pragma once

#include <cstdint>
#include <span>

namespace pronghorn {

struct CodeRange {
  uint32_t first, last;
};
// Each of first to last behaves, in the regular expressions of the reference, like `like` in ours.
struct StandIn {
  uint32_t first, last, like;
};
// Characters of one script: equal numbers, equal scripts. Without a row: any script.
struct ScriptRange {
  uint32_t first, last, script;
};
// Every step-th of first to last has its lower case at this difference.
struct LowerRange {
  uint32_t first, last, step;
  int32_t difference;
};

extern const std::span<const CodeRange> kWhitespace;      // Rust's char::is_whitespace
extern const std::span<const CodeRange> kWord;            // \w of Rust's regular expressions
extern const std::span<const CodeRange> kNumeric;         // char::is_numeric
extern const std::span<const CodeRange> kPunctuation;     // ASCII punctuation and category P
extern const std::span<const CodeRange> kCombiningMark;   // removed by StripAccents
extern const std::span<const CodeRange> kNonspacingMark;  // removed by BERT's strip_accents
extern const std::span<const CodeRange> kBertRemoved;     // removed by BERT's clean_text
extern const std::span<const CodeRange> kNotNormalized;   // newer than the reference's tables
extern const std::span<const ScriptRange> kScripts;
extern const std::span<const LowerRange> kLower;
extern const std::span<const StandIn> kStandIns;

}  // namespace pronghorn
