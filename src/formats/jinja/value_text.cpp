// Values as texts: what Python's str() and repr() give.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "formats/jinja/text.h"
#include "formats/jinja/value.h"
#include "formats/utf8.h"

namespace pronghorn::jinja {

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  // The shortest digits that read back as the same number: [-]d.ddde[+-]xx
  char buffer[64];
  const char* const end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  const std::string_view all(buffer, static_cast<size_t>(end - buffer));
  const size_t e = all.find('e');
  int exponent = 0;
  const char* from = all.data() + e + (all[e + 1] == '+' ? 2 : 1);
  std::from_chars(from, end, exponent);
  const bool minus = all[0] == '-';
  std::string digits;
  for (const char c : all.substr(minus ? 1 : 0, e - (minus ? 1 : 0))) {
    if (c != '.') digits += c;
  }
  std::string text(minus ? 1 : 0, '-');
  const auto count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    text += digits.substr(0, 1);
    if (count > 1) (text += '.').append(digits, 1);
    return text + fmt::format("e{}{:02}", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0)
    return text + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (count <= exponent + 1) {
    return text + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  }
  return text + digits.substr(0, static_cast<size_t>(exponent) + 1) + "." +
         digits.substr(static_cast<size_t>(exponent) + 1);
}

std::string repr(std::string_view text) {
  const char quote = text.find('\'') != text.npos && text.find('"') == text.npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const size_t length = std::max<size_t>(1, utf8_character(text.substr(at, 4)));
    const std::string_view character = text.substr(at, length);
    const uint32_t code =
        length == 1 ? static_cast<unsigned char>(character[0]) : decode_utf8(character);
    at += length;
    if (code == '\\' || code == static_cast<uint32_t>(quote)) {
      (out += '\\') += static_cast<char>(code);
    } else if (code == '\n') {
      out += "\\n";
    } else if (code == '\r') {
      out += "\\r";
    } else if (code == '\t') {
      out += "\\t";
    } else if (is_printable(code)) {
      out += character;
    } else {
      out += code < 0x100     ? fmt::format("\\x{:02x}", code)
             : code < 0x10000 ? fmt::format("\\u{:04x}", code)
                              : fmt::format("\\U{:08x}", code);
    }
  }
  return out += quote;
}

namespace {

std::string repr_list(Budget& budget, const List& list) {
  const auto joined = [&] {
    std::string out;
    for (const Value& item : list.items) {
      if (!out.empty()) out += ", ";
      out += repr(budget, item);
      budget.bytes(8);
    }
    budget.bytes(out.size());
    return out;
  };
  switch (list.type) {
    case List::Type::list:
      return fmt::format("[{}]", joined());
    case List::Type::tuple:
      return fmt::format("({}{})", joined(), list.items.size() == 1 ? "," : "");
    case List::Type::keys:
      return fmt::format("dict_keys([{}])", joined());
    case List::Type::values:
      return fmt::format("dict_values([{}])", joined());
    case List::Type::items:
      return fmt::format("dict_items([{}])", joined());
    case List::Type::range: {
      if (list.items.empty()) return "range(0, 0)";
      const int64_t first = *whole(list.items.front()), last = *whole(list.items.back());
      const int64_t step = list.items.size() > 1 ? *whole(list.items[1]) - first : 1;
      return step == 1 ? fmt::format("range({}, {})", first, last + 1)
                       : fmt::format("range({}, {}, {})", first, last + (step > 0 ? 1 : -1), step);
    }
    case List::Type::generator:
      break;
  }
  return "<generator>";
}

}  // namespace

std::string repr(Budget& budget, const Value& value) {
  budget.step();
  if (const Text* text = value.text()) {
    std::string quoted = repr(text->bytes);
    return text->safe ? fmt::format("Markup({})", quoted) : quoted;
  }
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "None";
  if (const bool* boolean = value.boolean()) return *boolean ? "True" : "False";
  if (const int64_t* integer = value.integer()) return std::to_string(*integer);
  if (const double* number = value.number()) return float_repr(*number);
  if (const List* list = value.list()) return repr_list(budget, *list);
  if (const Dict* dict = value.dict()) {
    std::string out;
    for (const auto& [key, item] : dict->items) {
      if (!out.empty()) out += ", ";
      out += repr(budget, key) + ": " + repr(budget, item);
    }
    budget.bytes(out.size());
    return fmt::format("{{{}}}", out);
  }
  return value.object()->repr();
}

std::string to_text(Budget& budget, const Value& value) {
  if (const Text* text = value.text()) {
    budget.bytes(text->bytes.size());
    return text->bytes;
  }
  return value.is_undefined() ? std::string() : repr(budget, value);
}

}  // namespace pronghorn::jinja
