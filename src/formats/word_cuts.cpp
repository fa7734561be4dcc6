#include "formats/word_cuts.h"

#include <algorithm>

#include "formats/utf8.h"

namespace pronghorn {
namespace {

constexpr std::string_view kWordMark = "\xE2\x96\x81";  // U+2581

uint32_t code_before(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return decode_utf8(text.substr(begin, end - begin));
}

}  // namespace

void WordCuts::add(std::string_view piece) {
  for (size_t at = piece.find(kWordMark, 1); at < piece.size();
       at = piece.find(kWordMark, at + 1)) {
    before_mark_.push_back(code_before(piece, at));
  }
  if (piece.size() < 2) return;
  for (const char c : piece) alone_[static_cast<unsigned char>(c)] = false;
}

void WordCuts::sort() {
  std::sort(before_mark_.begin(), before_mark_.end());
  before_mark_.erase(std::unique(before_mark_.begin(), before_mark_.end()), before_mark_.end());
}

size_t WordCuts::first(std::string_view text) const {
  constexpr auto kMarkByte = static_cast<unsigned char>(kWordMark[0]);
  if (text.empty()) return 0;
  if (alone_[static_cast<unsigned char>(text[0])]) return 1;
  for (size_t at = 1; at < text.size(); ++at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    if (alone_[byte]) return at;
    if (byte == kMarkByte && text.substr(at).starts_with(kWordMark) &&
        !std::binary_search(before_mark_.begin(), before_mark_.end(), code_before(text, at))) {
      return at;
    }
  }
  return text.size();
}

}  // namespace pronghorn
