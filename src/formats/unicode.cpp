#include "formats/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <vector>

#include "base/error.h"
#include "formats/unicode_tables.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

// A class as bits of 256 characters each: equal blocks are kept once.
class CodeSet {
 public:
  explicit CodeSet(std::span<const CodeRange> ranges) : index_(kBlocks, 0), blocks_(1) {
    for (const CodeRange& range : ranges) {
      for (uint32_t code = range.first; code <= range.last; ++code) {
        const uint32_t block = code >> 8;
        if (index_[block] == 0) {
          index_[block] = static_cast<uint16_t>(blocks_.size());
          blocks_.emplace_back();
        }
        blocks_[index_[block]][code >> 6 & 3] |= uint64_t{1} << (code & 63);
      }
    }
  }

  bool contains(uint32_t code) const {
    return code <= 0x10FFFF && (blocks_[index_[code >> 8]][code >> 6 & 3] >> (code & 63) & 1) != 0;
  }

 private:
  static constexpr size_t kBlocks = 0x1100;
  std::vector<uint16_t> index_;
  std::vector<std::array<uint64_t, 4>> blocks_;
};

std::vector<CodeRange> ranges_of_stand_ins() {
  std::vector<CodeRange> ranges;
  for (const StandIn& row : kStandIns) ranges.push_back({row.first, row.last});
  return ranges;
}

// Lengths of well-formed text need no checks.
size_t length_at(std::string_view text, size_t at) {
  const auto byte = static_cast<unsigned char>(text[at]);
  const size_t length = byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
  return std::min(length, text.size() - at);
}

uint32_t lower_of(uint32_t code) {
  const auto after =
      std::upper_bound(kLower.begin(), kLower.end(), code,
                       [](uint32_t value, const LowerRange& row) { return value < row.first; });
  if (after == kLower.begin()) return code;
  const LowerRange& row = *(after - 1);
  if (code > row.last || (code - row.first) % row.step != 0) return code;
  return code + static_cast<uint32_t>(row.difference);
}

void append_normalized(std::string_view text, NormalForm form, std::string& out) {
  if (text.empty()) return;
  int options = UTF8PROC_STABLE;
  const bool composes = form == NormalForm::nfc || form == NormalForm::nfkc;
  options |= composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == NormalForm::nfkc || form == NormalForm::nfkd) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t length = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
      static_cast<utf8proc_ssize_t>(text.size()), &result, static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  require(length >= 0, "text", "cannot be normalised: {}", utf8proc_errmsg(length));
  out.append(reinterpret_cast<const char*>(result), static_cast<size_t>(length));
}

}  // namespace

bool is_unicode_space(uint32_t code) {
  static const CodeSet set(kWhitespace);
  return set.contains(code);
}
bool is_word_character(uint32_t code) {
  static const CodeSet set(kWord);
  return set.contains(code);
}
bool is_numeric(uint32_t code) {
  static const CodeSet set(kNumeric);
  return set.contains(code);
}
bool is_punctuation(uint32_t code) {
  static const CodeSet set(kPunctuation);
  return set.contains(code);
}
bool is_combining_mark(uint32_t code) {
  static const CodeSet set(kCombiningMark);
  return set.contains(code);
}
bool is_nonspacing_mark(uint32_t code) {
  static const CodeSet set(kNonspacingMark);
  return set.contains(code);
}
bool is_removed_by_bert(uint32_t code) {
  static const CodeSet set(kBertRemoved);
  return set.contains(code);
}

bool is_cjk(uint32_t code) {
  // The blocks of ideographs, with the reference's gap in extension E.
  constexpr CodeRange kBlocks[] = {{0x3400, 0x4DBF},   {0x4E00, 0x9FFF},   {0xF900, 0xFAFF},
                                   {0x20000, 0x2A6DF}, {0x2A700, 0x2B81F}, {0x2B920, 0x2CEAF},
                                   {0x2F800, 0x2FA1F}};
  return std::any_of(std::begin(kBlocks), std::end(kBlocks), [&](const CodeRange& block) {
    return code >= block.first && code <= block.last;
  });
}

uint32_t script_of(uint32_t code) {
  const auto after =
      std::upper_bound(kScripts.begin(), kScripts.end(), code,
                       [](uint32_t value, const ScriptRange& row) { return value < row.first; });
  if (after == kScripts.begin() || code > (after - 1)->last) return kAnyScript;
  return (after - 1)->script;
}

std::string lower_case(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t length = length_at(text, at);
    const std::string_view character = text.substr(at, length);
    at += length;
    if (length == 1) {
      const char c = character[0];
      out += c >= 'A' && c <= 'Z' ? static_cast<char>(c + 'a' - 'A') : c;
      continue;
    }
    const uint32_t code = decode_utf8(character);
    if (code == 0x130) {  // I with a dot: the one letter whose lower case is two characters
      out += "i\xCC\x87";
    } else {
      append_utf8(lower_of(code), out);
    }
  }
  return out;
}

std::string normalize(std::string_view text, NormalForm form) {
  static const CodeSet unknown(kNotNormalized);
  // Below U+00A0 nothing changes in any form, below U+0300 nothing in NFC.
  const unsigned char first_change = form == NormalForm::nfc ? 0xCC : 0xC2;
  if (std::all_of(text.begin(), text.end(),
                  [&](char c) { return static_cast<unsigned char>(c) < first_change; })) {
    return std::string(text);
  }
  std::string out;
  out.reserve(text.size());
  // An unknown character neither changes nor lets anything pass: the parts around it stand alone.
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t length = length_at(text, at);
    if (length > 1 && unknown.contains(decode_utf8(text.substr(at, length)))) {
      append_normalized(text.substr(begin, at - begin), form, out);
      out.append(text.substr(at, length));
      begin = at + length;
    }
    at += length;
  }
  append_normalized(text.substr(begin), form, out);
  return out;
}

bool stand_in_characters(std::string_view text, std::string& out) {
  static const CodeSet differs(ranges_of_stand_ins());
  bool found = false;
  for (size_t at = 0; at < text.size();) {
    if ((static_cast<unsigned char>(text[at]) & 0x80) == 0) {
      ++at;
      continue;
    }
    const size_t length = length_at(text, at);
    const uint32_t code = decode_utf8(text.substr(at, length));
    if (differs.contains(code)) {
      if (!found) out.assign(text);
      found = true;
      const auto after =
          std::upper_bound(kStandIns.begin(), kStandIns.end(), code,
                           [](uint32_t value, const StandIn& row) { return value < row.first; });
      std::string character;
      append_utf8((after - 1)->like, character);
      out.replace(at, length, character);
    }
    at += length;
  }
  return found;
}

size_t grapheme_length(std::string_view text) {
  if (text.empty()) return 0;
  size_t at = length_at(text, 0);
  auto before = static_cast<utf8proc_int32_t>(decode_utf8(text.substr(0, at)));
  utf8proc_int32_t state = 0;
  while (at < text.size()) {
    const size_t length = length_at(text, at);
    const auto code = static_cast<utf8proc_int32_t>(decode_utf8(text.substr(at, length)));
    if (utf8proc_grapheme_break_stateful(before, code, &state)) break;
    before = code;
    at += length;
  }
  return at;
}

}  // namespace pronghorn
