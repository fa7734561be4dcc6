#include "base/quote.h"

#include <fmt/format.h>

#include <cstdint>

namespace pronghorn {
namespace {

struct Character {
  uint32_t code;
  size_t bytes;  // 0: not UTF-8
};

// The first character of `text`, which is not empty.
Character first_character(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const size_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  if (lead < 0xc2 || lead > 0xf4 || text.size() < bytes) return {lead, 0};
  uint32_t code = lead & (0x7fu >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {lead, 0};
    code = code << 6 | (byte(i) & 0x3fu);
  }
  const bool surrogate = code >= 0xd800 && code < 0xe000;
  if (code < kLeast[bytes] || code > 0x10ffff || surrogate) return {lead, 0};
  return {code, bytes};
}

// Whether a terminal would do something else than show it in its place.
bool is_control(uint32_t code) {
  const bool ascii = code < 0x20 || (code >= 0x7f && code < 0xa0);
  const bool direction = (code >= 0x200b && code <= 0x200f) || (code >= 0x202a && code <= 0x202e) ||
                         (code >= 0x2066 && code <= 0x2069);
  const bool line = code == 0x2028 || code == 0x2029 || code == 0xfeff;
  return ascii || direction || line;
}

std::string escape(uint32_t code) {
  if (code == '\n') return "\\n";
  if (code == '\r') return "\\r";
  if (code == '\t') return "\\t";
  return code < 0x100 ? fmt::format("\\x{:02x}", code) : fmt::format("\\u{:04x}", code);
}

}  // namespace

std::string printable(std::string_view text, size_t limit) {
  std::string shown;
  for (size_t count = 0; !text.empty(); ++count) {
    if (count == limit) return shown + "...";
    const Character character = first_character(text);
    if (character.bytes == 0 || is_control(character.code)) {
      shown += escape(character.code);
    } else {
      shown += text.substr(0, character.bytes);
    }
    text.remove_prefix(character.bytes == 0 ? 1 : character.bytes);
  }
  return shown;
}

std::string quote(std::string_view name, size_t limit) {
  return fmt::format("'{}'", printable(name, limit));
}

}  // namespace pronghorn
