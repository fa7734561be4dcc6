// The two ways in which Python fills in a text: "%s" % values, and "{}".format(values).
#include <charconv>
#include <cmath>

#include "formats/jinja/engine.h"
#include "formats/jinja/text.h"

namespace pronghorn::jinja {
namespace {

constexpr int64_t kWidest = 1'000'000;  // of one field

// [[fill]align][sign][#][0][width][,][.precision][type], of both kinds of fields.
struct Spec {
  std::string_view fill = " ";
  char align = 0;  // < > ^ =, or 0: as the type has it
  char sign = '-';
  bool alternate = false, has_zero = false;
  char grouping = 0;
  int64_t width = 0, precision = -1;
  char type = 0;
};

bool is_align(char c) { return c == '<' || c == '>' || c == '^' || c == '='; }

int64_t take_number(std::string_view& text) {
  int64_t value = 0;
  while (!text.empty() && text[0] >= '0' && text[0] <= '9') {
    value = value * 10 + (text[0] - '0');
    if (value > kWidest) throw Failure("too wide a field to format");
    text.remove_prefix(1);
  }
  return value;
}

bool take(std::string_view& text, char wanted) {
  if (!text.starts_with(wanted)) return false;
  text.remove_prefix(1);
  return true;
}

Spec parse_spec(std::string_view text) {
  Spec spec;
  const std::string whole(text);
  if (!text.empty()) {
    const std::string_view first = character_at(text, 0);
    if (text.size() > first.size() && is_align(text[first.size()])) {
      spec.fill = first;
      spec.align = text[first.size()];
      text.remove_prefix(first.size() + 1);
    } else if (is_align(text[0])) {
      spec.align = text[0];
      text.remove_prefix(1);
    }
  }
  if (!text.empty() && (text[0] == '+' || text[0] == '-' || text[0] == ' ')) {
    spec.sign = text[0];
    text.remove_prefix(1);
  }
  spec.alternate = take(text, '#');
  if (take(text, '0')) {
    spec.has_zero = true;
    if (spec.align == 0) {
      spec.fill = "0";
      spec.align = '=';
    }
  }
  spec.width = take_number(text);
  if (!text.empty() && (text[0] == ',' || text[0] == '_')) {
    spec.grouping = text[0];
    text.remove_prefix(1);
  }
  if (take(text, '.')) spec.precision = take_number(text);
  if (text.size() > 1) throw Failure(fmt::format("Invalid format specifier '{}'", whole));
  if (!text.empty()) spec.type = text[0];
  return spec;
}

std::string padded(Engine& engine, const Spec& spec, std::string sign, std::string body,
                   char align) {
  const int64_t missing = spec.width - character_count(body) - static_cast<int64_t>(sign.size());
  if (missing <= 0) return sign + body;
  engine.budget.bytes(static_cast<size_t>(missing) * spec.fill.size());
  const auto fill = [&](int64_t count) {
    std::string out;
    for (int64_t i = 0; i < count; ++i) out += spec.fill;
    return out;
  };
  switch (align) {
    case '<':
      return sign + body + fill(missing);
    case '^':
      return fill(missing / 2) + sign + body + fill(missing - missing / 2);
    case '=':
      return sign + fill(missing) + body;
    default:
      return fill(missing) + sign + body;
  }
}

std::string grouped(std::string digits, char separator) {
  const size_t end = std::min(digits.find_first_not_of("0123456789"), digits.size());
  for (size_t at = end; at > 3; at -= 3) digits.insert(at - 3, 1, separator);
  return digits;
}

std::string sign_of(bool minus, char wanted) {
  if (minus) return "-";
  return wanted == '-' ? "" : std::string(1, wanted);
}

std::string whole_digits(int64_t value, const Spec& spec) {
  const uint64_t size = value < 0 ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
  switch (spec.type) {
    case 'x':
      return (spec.alternate ? "0x" : "") + fmt::format("{:x}", size);
    case 'X':
      return (spec.alternate ? "0X" : "") + fmt::format("{:X}", size);
    case 'o':
      return (spec.alternate ? "0o" : "") + fmt::format("{:o}", size);
    case 'b':
      return (spec.alternate ? "0b" : "") + fmt::format("{:b}", size);
    default:
      return std::to_string(size);
  }
}

std::string float_digits(double value, const Spec& spec, char type) {
  const double size = std::abs(value);
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return "inf";
  const auto precision = static_cast<int>(spec.precision < 0 ? 6 : spec.precision);
  switch (type) {
    case 'e':
      return fmt::format("{:.{}e}", size, precision);
    case 'E':
      return fmt::format("{:.{}E}", size, precision);
    case 'f':
    case 'F':
      return fmt::format("{:.{}f}", size, precision);
    case '%':
      return fmt::format("{:.{}f}%", 100 * size, precision);
    case 'g':
    case 'G':
    case 'n':
      return fmt::format("{:.{}g}", size, std::max(precision, 1));
    default:
      return spec.precision < 0 ? float_repr(size)
                                : fmt::format("{:.{}g}", size, std::max(precision, 1));
  }
}

std::string format_value(Engine& engine, const Value& value, std::string_view spec_text) {
  if (spec_text.empty()) return to_text(engine.budget, value);
  const Spec spec = parse_spec(spec_text);
  const auto unknown = [&] {
    return Failure(fmt::format("Unknown format code '{}' for object of type '{}'", spec.type,
                               type_name(value)));
  };
  if (const Text* text = value.text()) {
    if (spec.type != 0 && spec.type != 's') throw unknown();
    if (spec.align == '=' && !spec.has_zero) {
      throw Failure("'=' alignment not allowed in string format specifier");
    }
    std::string body = text->bytes;
    if (spec.precision >= 0) {
      const std::vector<std::string_view> all = characters(text->bytes);
      body.clear();
      for (size_t i = 0; i < all.size() && i < static_cast<size_t>(spec.precision); ++i) {
        body += all[i];
      }
    }
    return padded(engine, spec, "", body, spec.align == 0 || spec.align == '=' ? '<' : spec.align);
  }
  const bool float_type =
      spec.type != 0 && std::string_view("eEfFgG%").find(spec.type) != std::string_view::npos;
  const char align = spec.align == 0 ? '>' : spec.align;
  if (const auto number = whole(value); number && !float_type) {
    if (spec.type == 'c') {
      std::string character;
      append_character(*number, character);
      return padded(engine, spec, "", character, spec.align == 0 ? '<' : spec.align);
    }
    if (spec.type != 0 && std::string_view("dxXobn").find(spec.type) == std::string_view::npos) {
      throw unknown();
    }
    std::string digits = whole_digits(*number, spec);
    if (spec.grouping != 0) digits = grouped(digits, spec.grouping);
    return padded(engine, spec, sign_of(*number < 0, spec.sign), digits, align);
  }
  if (const auto number = real(value)) {
    if (spec.type != 0 && !float_type && spec.type != 'n') throw unknown();
    if (spec.precision > 1000) throw Failure("too many digits to format");
    std::string digits = float_digits(*number, spec, spec.type);
    if (spec.grouping != 0) digits = grouped(digits, spec.grouping);
    return padded(engine, spec, sign_of(std::signbit(*number), spec.sign), digits, align);
  }
  throw Failure(fmt::format("unsupported format string passed to {}.__format__", type_name(value)));
}

// The arguments of "%": one value, a tuple of them, or a dictionary for %(name)s.
class PercentValues {
 public:
  explicit PercentValues(const Value& values) : values_(values) {
    const List* list = values.list();
    tuple_ = list != nullptr && list->type == List::Type::tuple ? list : nullptr;
  }
  Value next() {
    const size_t count = tuple_ != nullptr ? tuple_->items.size() : 1;
    if (next_ >= count) throw Failure("not enough arguments for format string");
    return tuple_ != nullptr ? tuple_->items[next_++] : (++next_, values_);
  }
  Value named(std::string_view name) {
    const Dict* dict = values_.dict();
    if (dict == nullptr) throw Failure("format requires a mapping");
    const Value* found = dict->find(name);
    if (found == nullptr) throw Failure(repr(name));
    next_ = 1;
    return *found;
  }
  void finish() const {
    if (tuple_ != nullptr ? next_ < tuple_->items.size()
                          : next_ == 0 && values_.dict() == nullptr && values_.list() == nullptr) {
      throw Failure("not all arguments converted during string formatting");
    }
  }

 private:
  const Value& values_;
  const List* tuple_;
  size_t next_ = 0;
};

std::string percent_field(Engine& engine, const Value& value, Spec spec) {
  const char type = spec.type;
  if (type == 's' || type == 'r' || type == 'a') {
    const std::string text =
        type == 's' ? to_text(engine.budget, value) : repr(engine.budget, value);
    spec.type = 's';
    spec.fill = " ";
    std::string body = text;
    if (spec.precision >= 0) {
      const std::vector<std::string_view> all = characters(text);
      body.clear();
      for (size_t i = 0; i < all.size() && i < static_cast<size_t>(spec.precision); ++i) {
        body += all[i];
      }
    }
    return padded(engine, spec, "", body, spec.align == '<' ? '<' : '>');
  }
  const char align = spec.align == 0 ? '>' : spec.align;
  if (type == 'c') {
    std::string character;
    if (value.text() != nullptr) {
      character.append(value.text()->bytes);
    } else if (const auto code = whole(value)) {
      append_character(*code, character);
    }
    if (character_count(character) != 1) throw Failure("%c requires int or char");
    return padded(engine, spec, "", character, align);
  }
  const auto number = real(value);
  if (!number) {
    value.must_be_defined();
    throw Failure(
        fmt::format("%{} format: a real number is required, not {}", type, type_name(value)));
  }
  if (std::string_view("diuxXo").find(type) != std::string_view::npos) {
    if (whole(value)) {
      return padded(engine, spec, sign_of(*whole(value) < 0, spec.sign),
                    whole_digits(*whole(value), spec), align);
    }
    if (type == 'x' || type == 'X' || type == 'o') {
      throw Failure(fmt::format("%{} format: an integer is required, not float", type));
    }
    if (!(std::abs(*number) < 9e18)) throw Failure("cannot convert such a number to an integer");
    return padded(engine, spec, sign_of(*number < 0, spec.sign),
                  whole_digits(static_cast<int64_t>(*number), spec), align);
  }
  if (std::string_view("eEfFgG").find(type) == std::string_view::npos) {
    throw Failure(fmt::format("unsupported format character '{}'", type));
  }
  if (spec.precision > 1000) throw Failure("too many digits to format");
  return padded(engine, spec, sign_of(std::signbit(*number), spec.sign),
                float_digits(*number, spec, type), align);
}

}  // namespace

std::string format_percent(Engine& engine, std::string_view format, const Value& values) {
  std::string out;
  PercentValues arguments(values);
  while (!format.empty()) {
    const size_t at = std::min(format.find('%'), format.size());
    out += format.substr(0, at);
    engine.budget.bytes(at + 1);
    format.remove_prefix(at);
    if (format.empty()) break;
    format.remove_prefix(1);
    if (take(format, '%')) {
      out += '%';
      continue;
    }
    std::optional<std::string> name;
    if (take(format, '(')) {
      const size_t end = format.find(')');
      if (end == format.npos) throw Failure("incomplete format key");
      name.emplace(format.substr(0, end));
      format.remove_prefix(end + 1);
    }
    Spec spec;
    for (;; format.remove_prefix(1)) {
      const char flag = format.empty() ? 0 : format[0];
      if (flag == '-') {
        spec.align = '<';
      } else if (flag == '+' || (flag == ' ' && spec.sign != '+')) {
        spec.sign = flag;
      } else if (flag == '#') {
        spec.alternate = true;
      } else if (flag == '0') {
        spec.fill = "0";
        if (spec.align == 0) spec.align = '=';
      } else if (flag != ' ') {
        break;
      }
    }
    if (spec.align == '<') spec.fill = " ";
    spec.width = take_number(format);
    if (take(format, '.')) spec.precision = take_number(format);
    if (format.empty()) throw Failure("incomplete format");
    spec.type = format[0];
    format.remove_prefix(1);
    out += percent_field(engine, name ? arguments.named(*name) : arguments.next(), spec);
    engine.budget.bytes(out.size() / 16);
  }
  arguments.finish();
  return out;
}

namespace {

// What "name.attribute[key]" of a field names.
Value field_value(Engine& engine, std::string_view field, const Arguments& arguments,
                  size_t& automatic) {
  const size_t end = std::min(field.find_first_of(".["), field.size());
  const std::string_view first = field.substr(0, end);
  Value value;
  size_t index = 0;
  const auto [stop, code] = std::from_chars(first.data(), first.data() + first.size(), index);
  const bool numbered = code == std::errc() && stop == first.data() + first.size();
  if (first.empty() || numbered) {
    if (first.empty()) index = automatic++;
    if (index >= arguments.list.size()) {
      throw Failure(
          fmt::format("Replacement index {} out of range for positional args tuple", index));
    }
    value = arguments.list[index];
  } else {
    const auto found = std::find_if(arguments.named.begin(), arguments.named.end(),
                                    [&](const auto& item) { return item.first == first; });
    if (found == arguments.named.end()) throw Failure(repr(first));
    value = found->second;
  }
  field.remove_prefix(end);
  while (!field.empty()) {
    if (take(field, '.')) {
      const size_t stop_at = std::min(field.find_first_of(".["), field.size());
      value = attribute_of(engine, value, std::string(field.substr(0, stop_at)));
      field.remove_prefix(stop_at);
    } else {
      const size_t close = field.find(']');
      if (!take(field, '[') || close == field.npos) throw Failure("Missing ']' in format string");
      const std::string_view key = field.substr(0, close - 1);
      int64_t number = 0;
      const auto [e, c] = std::from_chars(key.data(), key.data() + key.size(), number);
      const bool is_number = c == std::errc() && e == key.data() + key.size();
      value = item_of(engine, value, is_number ? Value(number) : Value(std::string(key)));
      field.remove_prefix(close);
    }
  }
  return value;
}

std::string format_level(Engine& engine, std::string_view format, const Arguments& arguments,
                         size_t& automatic, int level) {
  if (level > 2) throw Failure("Max string recursion exceeded");
  std::string out;
  while (!format.empty()) {
    const size_t at = std::min(format.find_first_of("{}"), format.size());
    out += format.substr(0, at);
    engine.budget.bytes(at + 1);
    format.remove_prefix(at);
    if (format.empty()) break;
    const char brace = format[0];
    format.remove_prefix(1);
    if (take(format, brace)) {
      out += brace;
      continue;
    }
    if (brace == '}') throw Failure("Single '}' encountered in format string");
    // To the brace that closes this one.
    size_t end = 0;
    for (int depth = 1; end < format.size(); ++end) {
      if (format[end] == '{') ++depth;
      if (format[end] == '}' && --depth == 0) break;
    }
    if (end >= format.size()) throw Failure("expected '}' before end of string");
    std::string_view field = format.substr(0, end), spec;
    format.remove_prefix(end + 1);
    if (const size_t colon = field.find(':'); colon != field.npos) {
      spec = field.substr(colon + 1);
      field = field.substr(0, colon);
    }
    char conversion = 0;
    if (const size_t mark = field.find('!'); mark != field.npos) {
      if (mark + 2 != field.size()) throw Failure("expected ':' after conversion specifier");
      conversion = field[mark + 1];
      field = field.substr(0, mark);
    }
    Value value = field_value(engine, field, arguments, automatic);
    if (conversion == 's') value = Value(to_text(engine.budget, value));
    if (conversion == 'r' || conversion == 'a') value = Value(repr(engine.budget, value));
    out += format_value(engine, value, format_level(engine, spec, arguments, automatic, level + 1));
    engine.budget.bytes(out.size() / 16);
  }
  return out;
}

}  // namespace

std::string format_braces(Engine& engine, std::string_view format, const Arguments& arguments) {
  size_t automatic = 0;
  return format_level(engine, format, arguments, automatic, 1);
}

}  // namespace pronghorn::jinja
