#include "formats/charsmap.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "formats/unicode.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

// Fields of a unit: what is added to reach its children, whether one of them is a leaf, and the
// byte that leads to it.
uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); }
bool has_leaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t label_of(uint32_t unit) { return unit & (0x80000000u | 0xFFu); }
uint32_t value_of(uint32_t unit) { return unit & 0x7FFFFFFFu; }

}  // namespace

Charsmap::Charsmap(std::string_view rules, const std::string& where) {
  if (rules.empty()) return;
  uint32_t trie_bytes = 0;
  require(rules.size() > sizeof(trie_bytes), where, "normalisation rules of {} bytes",
          rules.size());
  std::memcpy(&trie_bytes, rules.data(), sizeof(trie_bytes));
  rules.remove_prefix(sizeof(trie_bytes));
  constexpr uint32_t kUnit = 4;
  require(trie_bytes > 0 && trie_bytes % kUnit == 0 && trie_bytes < rules.size(), where,
          "a normalisation trie of {} bytes in rules of {}", trie_bytes, rules.size());
  strings_ = rules.substr(trie_bytes);
  require(strings_.back() == '\0', where, "the last normalisation rule does not end");
  units_.resize(trie_bytes / kUnit);
  std::memcpy(units_.data(), rules.data(), trie_bytes);
}

bool Charsmap::may_begin(unsigned char byte) const {
  if (units_.empty()) return false;
  const uint32_t at = offset_of(units_[0]) ^ byte;
  return at < units_.size() && label_of(units_[at]) == byte;
}

std::optional<Charsmap::Match> Charsmap::find(std::string_view text, bool longest) const {
  std::optional<Match> match;
  if (units_.empty()) return match;
  // A unit that lies outside the trie has no children: whatever the file says, no walk leaves it.
  const auto unit_at = [&](uint32_t at) { return at < units_.size() ? units_[at] : 0; };
  uint32_t at = offset_of(units_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    at ^= byte;
    const uint32_t unit = unit_at(at);
    if (byte == 0 || label_of(unit) != byte) break;
    at ^= offset_of(unit);
    if (!has_leaf(unit)) continue;
    const uint32_t value = value_of(unit_at(at));
    if (value >= strings_.size()) break;
    match = {i + 1, std::string_view(strings_.c_str() + value)};
    if (!longest) break;
  }
  return match;
}

std::string Charsmap::apply(std::string_view text) const {
  constexpr size_t kLongestWhole = 6;
  std::string out;
  out.reserve(text.size());
  const auto add = [&](std::string_view part) {
    if (const auto rule = shortest(part)) {
      out += rule->replacement;
      return true;
    }
    return false;
  };
  while (!text.empty()) {
    const std::string_view whole = text.substr(0, grapheme_length(text));
    text.remove_prefix(whole.size());
    if (whole.size() < kLongestWhole && add(whole)) continue;
    for (size_t at = 0; at < whole.size();) {
      const size_t length = std::max<size_t>(utf8_character(whole.substr(at, 4)), 1);
      const std::string_view character = whole.substr(at, length);
      if (!add(character)) out += character;
      at += length;
    }
  }
  return out;
}

}  // namespace pronghorn
