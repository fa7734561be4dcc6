// UTF-8: validation and walking. Text enters the engine through these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pronghorn {

// Length in bytes (1 to 4) of the well-formed character at the start of `text`; 0 if there is none
// (empty, truncated, overlong, a surrogate or beyond U+10FFFF: Unicode standard, table 3-7).
size_t utf8_character(std::string_view text);

// True if `text` is the start of a well-formed character that needs more bytes.
bool utf8_incomplete(std::string_view text);

// Offset of the first byte that is not part of well-formed UTF-8, or npos.
size_t find_invalid_utf8(std::string_view text);

// The code point of a well-formed character, as measured by utf8_character.
uint32_t decode_utf8(std::string_view character);

// Appends a code point as UTF-8.
void append_utf8(uint32_t code_point, std::string& out);

}  // namespace pronghorn
