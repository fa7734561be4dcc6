#include "formats/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "formats/utf8.h"

namespace pronghorn {
namespace {

// Printable bytes stand for themselves, the others for U+0100 onwards in their order.
struct ByteAlphabet {
  ByteAlphabet() {
    code_to_byte.fill(-1);
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      const uint32_t code = printable ? byte : next++;
      code_to_byte[code] = static_cast<int16_t>(byte);
      std::string written;
      append_utf8(code, written);
      lengths[byte] = static_cast<uint8_t>(written.size());
      characters[byte] = {written[0], written.size() > 1 ? written[1] : '\0'};
    }
  }
  std::array<std::array<char, 2>, 256> characters;
  std::array<uint8_t, 256> lengths;
  std::array<int16_t, kByteAlphabetEnd> code_to_byte;
};

const ByteAlphabet& alphabet() {
  static const ByteAlphabet instance;
  return instance;
}

}  // namespace

void append_byte_alphabet(std::string_view bytes, std::string& out) {
  const ByteAlphabet& table = alphabet();
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    out.append(table.characters[byte].data(), table.lengths[byte]);
  }
}

std::optional<std::string> from_byte_alphabet(std::string_view text) {
  std::string bytes;
  while (!text.empty()) {
    const size_t length = utf8_character(text.substr(0, 4));
    if (length == 0) return {};
    const uint32_t code = decode_utf8(text.substr(0, length));
    if (code >= kByteAlphabetEnd || alphabet().code_to_byte[code] < 0) return {};
    bytes += static_cast<char>(alphabet().code_to_byte[code]);
    text.remove_prefix(length);
  }
  return bytes;
}

std::optional<unsigned char> parse_byte_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return {};
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return {};
    value = value * 16 + digit;
  }
  return static_cast<unsigned char>(value);
}

}  // namespace pronghorn
