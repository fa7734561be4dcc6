// Unicode as tokenizers need it: classes of characters, case, and normalisation forms.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pronghorn {

// Classes of the reference library (unicode_tables.h). Arguments are code points.
bool is_unicode_space(uint32_t code);
bool is_word_character(uint32_t code);
bool is_numeric(uint32_t code);
bool is_punctuation(uint32_t code);
bool is_combining_mark(uint32_t code);
bool is_nonspacing_mark(uint32_t code);
bool is_removed_by_bert(uint32_t code);
// Han, as BERT's tokenizer counts it: each such character is a word.
bool is_cjk(uint32_t code);

// Scripts as the pre-tokenizer UnicodeScripts tells them apart: equal numbers, equal scripts.
constexpr uint32_t kAnyScript = ~uint32_t{0};
uint32_t script_of(uint32_t code);

// Each character in lower case, whatever stands around it.
std::string lower_case(std::string_view text);

enum class NormalForm : uint8_t { nfc, nfd, nfkc, nfkd };

// The text, which must be UTF-8, in a normalisation form (Unicode annex 15, by utf8proc).
// Characters that the reference's older tables do not have stay as they are.
std::string normalize(std::string_view text, NormalForm form);

// Replaces characters that the reference's regular expressions class otherwise than ours by others
// of the right class and the same length in bytes. Returns false, and leaves `out` alone, if there
// are none.
bool stand_in_characters(std::string_view text, std::string& out);

// Length in bytes of the first user-perceived character (grapheme cluster, Unicode annex 29).
size_t grapheme_length(std::string_view text);

}  // namespace pronghorn
