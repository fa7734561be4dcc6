// The byte-level alphabet of GPT-2: each byte has a printable character of its own, so that
// vocabularies can be written as text (Radford et al. 2019, encoder.py).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace pronghorn {

// Characters of the alphabet are below this code point.
constexpr uint32_t kByteAlphabetEnd = 0x144;

void append_byte_alphabet(std::string_view bytes, std::string& out);
// The reverse; nothing if a character is not in that alphabet.
std::optional<std::string> from_byte_alphabet(std::string_view text);

// The byte that a token such as "<0x0A>" names.
std::optional<unsigned char> parse_byte_token(std::string_view token);

}  // namespace pronghorn
