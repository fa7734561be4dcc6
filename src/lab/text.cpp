#include "lab/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

namespace pronghorn::lab {
namespace {

constexpr char32_t kReplacement = 0xFFFD;
constexpr std::string_view kReplacementBytes = "\xEF\xBF\xBD";

struct Range {
  char32_t first, last;
};

// Unicode 15: blocks of East Asian Width W and F, and emoji.
constexpr Range kWide[] = {
    {0x1100, 0x115F},   {0x2E80, 0x303E},   {0x3041, 0xA4CF},  {0xA960, 0xA97F}, {0xAC00, 0xD7A3},
    {0xF900, 0xFAFF},   {0xFE30, 0xFE6F},   {0xFF00, 0xFF60},  {0xFFE0, 0xFFE6}, {0x1F300, 0x1F64F},
    {0x1F680, 0x1F6FF}, {0x1F900, 0x1FAFF}, {0x20000, 0x3FFFD}};
// Combining marks, joiners, direction marks, variation selectors.
constexpr Range kZeroWidth[] = {
    {0x0300, 0x036F}, {0x0483, 0x0489}, {0x0591, 0x05BD}, {0x064B, 0x065F}, {0x200B, 0x200F},
    {0x202A, 0x202E}, {0x2060, 0x206F}, {0x20D0, 0x20FF}, {0xFE00, 0xFE0F}, {0xFEFF, 0xFEFF}};

template <size_t N>
bool in_ranges(char32_t point, const Range (&ranges)[N]) {
  return std::any_of(std::begin(ranges), std::end(ranges), [point](const Range& range) {
    return point >= range.first && point <= range.last;
  });
}

bool is_control(char32_t point) { return point < 0x20 || (point >= 0x7F && point < 0xA0); }

}  // namespace

char32_t take_code_point(std::string_view& rest) {
  const auto lead = static_cast<unsigned char>(rest.front());
  const size_t length = lead < 0x80   ? 1
                        : lead < 0xC2 ? 0
                        : lead < 0xE0 ? 2
                        : lead < 0xF0 ? 3
                        : lead < 0xF5 ? 4
                                      : 0;
  if (length == 1) {
    rest.remove_prefix(1);
    return lead;
  }
  char32_t point = lead & (0x7F >> length);
  bool valid = length != 0 && rest.size() >= length;
  for (size_t i = 1; valid && i < length; ++i) {
    const auto byte = static_cast<unsigned char>(rest[i]);
    valid = (byte & 0xC0) == 0x80;
    point = point << 6 | (byte & 0x3F);
  }
  // Overlong forms, surrogates and what lies past Unicode.
  if (length == 3) valid = valid && point >= 0x800 && (point < 0xD800 || point > 0xDFFF);
  if (length == 4) valid = valid && point >= 0x10000 && point <= 0x10FFFF;
  rest.remove_prefix(valid ? length : 1);
  return valid ? point : kReplacement;
}

size_t display_width(std::string_view text) {
  size_t width = 0;
  while (!text.empty()) {
    const char32_t point = take_code_point(text);
    width += in_ranges(point, kZeroWidth) ? 0 : in_ranges(point, kWide) ? 2 : 1;
  }
  return width;
}

std::string one_line(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const std::string_view before = text;
    const char32_t point = take_code_point(text);
    if (point == kReplacement || is_control(point)) {
      result += kReplacementBytes;
    } else {
      result += before.substr(0, before.size() - text.size());
    }
  }
  return result;
}

std::string html_escape(std::string_view text) {
  std::string result;
  result.reserve(text.size() + text.size() / 8);
  while (!text.empty()) {
    const std::string_view before = text;
    const char32_t point = take_code_point(text);
    switch (point) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      case '\t':
      case '\n':
        result += static_cast<char>(point);
        break;
      default:
        if (point == kReplacement || is_control(point)) {
          result += kReplacementBytes;
        } else {
          result += before.substr(0, before.size() - text.size());
        }
    }
  }
  return result;
}

std::string script_escape(std::string_view json) {
  std::string result;
  result.reserve(json.size());
  for (const char c : json) {
    switch (c) {
      case '<':
        result += "\\u003c";
        break;
      case '>':
        result += "\\u003e";
        break;
      case '&':
        result += "\\u0026";
        break;
      default:
        result += c;
    }
  }
  return result;
}

std::string format_context(int64_t context) {
  constexpr int64_t kKilo = 1024, kMega = kKilo * kKilo;
  if (context >= kMega && context % kMega == 0) return fmt::format("{}M", context / kMega);
  if (context >= kKilo && context % kKilo == 0) return fmt::format("{}k", context / kKilo);
  return fmt::format("{}", context);
}

std::string format_percent(double fraction) {
  const double percent = 100 * fraction;
  return fmt::format("{:.{}f}%", percent, std::abs(percent) < 9.95 ? 1 : 0);
}

std::string format_recall(double accuracy) { return fmt::format("{:.1f}%", 100 * accuracy); }

std::string format_bits(double bits) { return fmt::format("{:.3f}", bits); }

}  // namespace pronghorn::lab
