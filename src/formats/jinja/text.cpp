#include "formats/jinja/text.h"

#include <utf8proc.h>

#include <algorithm>

#include "formats/jinja/value.h"
#include "formats/utf8.h"

namespace pronghorn::jinja {
namespace {

// Calls function(code point, its bytes) for each character.
template <typename Function>
void for_each(std::string_view text, const Function& function) {
  for (size_t at = 0; at < text.size();) {
    const auto byte = static_cast<unsigned char>(text[at]);
    const size_t length = byte < 0x80 ? 1 : std::max<size_t>(1, utf8_character(text.substr(at, 4)));
    const std::string_view bytes = text.substr(at, length);
    function(length == 1 ? byte : decode_utf8(bytes), bytes);
    at += length;
  }
}

utf8proc_category_t category(uint32_t code) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(code));
}

void append_upper(uint32_t code, std::string& out) {
  if (code == 0xDF) {  // the one common letter whose upper case is two
    out += "SS";
    return;
  }
  append_utf8(static_cast<uint32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(code))), out);
}

void append_lower(uint32_t code, std::string& out) {
  append_utf8(static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))), out);
}

void append_title(uint32_t code, std::string& out) {
  if (code == 0xDF) {
    out += "Ss";
    return;
  }
  append_utf8(static_cast<uint32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(code))), out);
}

bool cased(uint32_t code) {
  const utf8proc_category_t kind = category(code);
  return kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LL ||
         kind == UTF8PROC_CATEGORY_LT;
}

uint32_t code_of(std::string_view character) {
  return character.size() == 1 ? static_cast<unsigned char>(character[0]) : decode_utf8(character);
}

// The last character of a text that is not empty.
std::string_view last_character(std::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return text.substr(begin);
}

std::string_view first_character(std::string_view text) {
  return text.substr(0, std::max<size_t>(1, utf8_character(text.substr(0, 4))));
}

template <typename Wanted>
std::string_view strip_where(std::string_view text, bool left, bool right, const Wanted& wanted) {
  while (left && !text.empty() && wanted(first_character(text))) {
    text.remove_prefix(first_character(text).size());
  }
  while (right && !text.empty() && wanted(last_character(text))) {
    text.remove_suffix(last_character(text).size());
  }
  return text;
}

}  // namespace

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> all;
  all.reserve(text.size());
  for_each(text, [&](uint32_t, std::string_view bytes) { all.push_back(bytes); });
  return all;
}

int64_t character_count(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::string_view character_at(std::string_view text, int64_t place) {
  for (; place > 0; --place) text.remove_prefix(first_character(text).size());
  return first_character(text);
}

bool every_character(std::string_view text, bool (*wanted)(uint32_t)) {
  bool all = !text.empty();
  for_each(text, [&](uint32_t code, std::string_view) { all = all && wanted(code); });
  return all;
}

bool is_cased(std::string_view text, bool upper) {
  bool any = false, all = true;
  for_each(text, [&](uint32_t code, std::string_view) {
    if (!cased(code)) return;
    any = true;
    all = all && (upper ? is_upper(code) : is_lower(code));
  });
  return any && all;
}

bool is_space(uint32_t code) {
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 ||
         code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_printable(uint32_t code) {
  if (code == ' ') return true;
  switch (category(code)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool is_letter(uint32_t code) {
  const utf8proc_category_t kind = category(code);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool is_digit(uint32_t code) { return category(code) == UTF8PROC_CATEGORY_ND; }

bool is_word(uint32_t code) {
  const utf8proc_category_t kind = category(code);
  return code == '_' || is_letter(code) || kind == UTF8PROC_CATEGORY_ND ||
         kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_NO;
}

bool is_lower(uint32_t code) { return category(code) == UTF8PROC_CATEGORY_LL; }
bool is_upper(uint32_t code) { return category(code) == UTF8PROC_CATEGORY_LU; }

std::string to_upper(std::string_view text) {
  std::string out;
  for_each(text, [&](uint32_t code, std::string_view) { append_upper(code, out); });
  return out;
}

std::string to_lower(std::string_view text) {
  std::string out;
  for_each(text, [&](uint32_t code, std::string_view) { append_lower(code, out); });
  return out;
}

std::string capitalized(std::string_view text) {
  std::string out;
  for_each(text, [&](uint32_t code, std::string_view) {
    out.empty() ? append_title(code, out) : append_lower(code, out);
  });
  return out;
}

std::string title_case(std::string_view text) {
  std::string out;
  bool inside = false;
  for_each(text, [&](uint32_t code, std::string_view) {
    inside ? append_lower(code, out) : append_title(code, out);
    inside = cased(code);
  });
  return out;
}

std::string swapped_case(std::string_view text) {
  std::string out;
  for_each(text, [&](uint32_t code, std::string_view) {
    is_upper(code) ? append_lower(code, out) : append_upper(code, out);
  });
  return out;
}

std::string_view strip(std::string_view text, bool left, bool right) {
  return strip_where(text, left, right,
                     [](std::string_view character) { return is_space(code_of(character)); });
}

std::string_view strip(std::string_view text, std::string_view set, bool left, bool right) {
  const std::vector<std::string_view> wanted = characters(set);
  return strip_where(text, left, right, [&](std::string_view character) {
    return std::find(wanted.begin(), wanted.end(), character) != wanted.end();
  });
}

std::vector<std::string_view> split_at_space(std::string_view text, int64_t most, bool from_right) {
  std::vector<std::string_view> pieces;
  const auto space = [](std::string_view character) { return is_space(code_of(character)); };
  text = strip(text);
  while (!text.empty()) {
    if (most >= 0 && static_cast<int64_t>(pieces.size()) == most) {
      pieces.push_back(text);
      break;
    }
    std::string_view rest = text;
    if (from_right) {
      while (!rest.empty() && !space(last_character(rest))) {
        rest.remove_suffix(last_character(rest).size());
      }
      pieces.push_back(text.substr(rest.size()));
      text = strip(rest, false, true);
    } else {
      while (!rest.empty() && !space(first_character(rest))) {
        rest.remove_prefix(first_character(rest).size());
      }
      pieces.push_back(text.substr(0, text.size() - rest.size()));
      text = strip(rest, true, false);
    }
  }
  if (from_right) std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

std::vector<std::string_view> lines_of(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const std::string_view character = first_character(text.substr(at));
    const uint32_t code = code_of(character);
    const bool ends = (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) ||
                      code == 0x85 || code == 0x2028 || code == 0x2029;
    const size_t stop = at;
    at += character.size();
    if (!ends) continue;
    if (code == '\r' && at < text.size() && text[at] == '\n') ++at;
    lines.push_back(text.substr(begin, (keep_ends ? at : stop) - begin));
    begin = at;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

int64_t count_of(std::string_view text, std::string_view part, int64_t most) {
  int64_t count = 0;
  if (part.empty()) {
    count = character_count(text) + 1;
  } else {
    for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + part.size())) {
      ++count;
    }
  }
  return most < 0 ? count : std::min(count, most);
}

std::string replace(std::string_view text, std::string_view from, std::string_view to,
                    int64_t most) {
  std::string out;
  int64_t done = 0;
  if (from.empty()) {  // before each character, and at the end
    for (const std::string_view character : characters(text)) {
      if (most < 0 || done++ < most) out += to;
      out += character;
    }
    if (most < 0 || done < most) out += to;
    return out;
  }
  size_t begin = 0;
  while (most < 0 || done++ < most) {
    const size_t found = text.find(from, begin);
    if (found == text.npos) break;
    (out += text.substr(begin, found - begin)) += to;
    begin = found + from.size();
  }
  return out += text.substr(begin);
}

void append_character(int64_t code, std::string& out) {
  if (code < 0 || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
    throw Failure(fmt::format("{} is not a character", code));
  }
  append_utf8(static_cast<uint32_t>(code), out);
}

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

}  // namespace pronghorn::jinja
