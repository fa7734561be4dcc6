// Filters: {{ value | name(arguments) }}.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "formats/jinja/engine.h"
#include "formats/jinja/text.h"

namespace pronghorn::jinja {
namespace {

using Given = std::span<const Value* const>;

struct Filter {
  std::string_view name, parameters;
  size_t required;
  Value (*run)(Engine&, const Value& value, Given given);
};
// Those that take any number of arguments.
struct FreeFilter {
  std::string_view name;
  Value (*run)(Engine&, const Value& value, Arguments& arguments);
};

bool flag(const Value* value) { return value != nullptr && truth(*value); }

int64_t number(const Value* value, int64_t fallback) {
  if (value == nullptr || value->is_none()) return fallback;
  value->must_be_defined();
  const auto result = whole(*value);
  if (!result) {
    throw Failure(
        fmt::format("'{}' object cannot be interpreted as an integer", type_name(*value)));
  }
  return *result;
}

// The value as text, with its mark if it has one.
Value soft_text(Engine& engine, const Value& value) {
  return value.text() != nullptr ? value : Value(to_text(engine.budget, value));
}

Value like(Engine& engine, const Value& soft, std::string text) {
  return make_text(engine.budget, std::move(text), soft.text()->safe);
}

// A method of the value as text.
Value through(Engine& engine, const Value& value, std::string_view method, Arguments arguments) {
  const Value soft = soft_text(engine, value);
  return method_of(soft, method)->object()->call(engine, arguments);
}

Value generator(Engine& engine, std::vector<Value> items) {
  return make_list(engine.budget, std::move(items), List::Type::generator);
}

Value lower_case(Engine& engine, const Value& value) {
  if (value.text() == nullptr) return value;
  return make_text(engine.budget, to_lower(value.text()->bytes));
}

// What "address.city" or 0 names in an item.
class AttributeGetter {
 public:
  AttributeGetter(const Value* attribute, const Value* fallback, bool fold_case)
      : fallback_(fallback), fold_case_(fold_case) {
    if (attribute == nullptr || attribute->is_none()) return;
    if (attribute->text() == nullptr) {
      parts_.push_back(*attribute);
      return;
    }
    std::string_view rest = attribute->text()->bytes;
    while (true) {
      const size_t dot = std::min(rest.find('.'), rest.size());
      const std::string_view part = rest.substr(0, dot);
      int64_t index = 0;
      const auto [end, code] = std::from_chars(part.data(), part.data() + part.size(), index);
      const bool is_index = code == std::errc() && end == part.data() + part.size() && index >= 0;
      parts_.push_back(is_index ? Value(index) : Value(std::string(part)));
      if (dot == rest.size()) break;
      rest.remove_prefix(dot + 1);
    }
  }

  Value operator()(Engine& engine, Value item) const {
    for (const Value& part : parts_) {
      item = item_of(engine, item, part);
      if (fallback_ != nullptr && !fallback_->is_none() && item.is_undefined()) item = *fallback_;
    }
    return fold_case_ ? lower_case(engine, item) : item;
  }

 private:
  std::vector<Value> parts_;
  const Value* fallback_;
  bool fold_case_;
};

Value absolute(Engine&, const Value& value, Given) {
  const auto integer = whole(value);
  if (integer && *integer >= 0) return *integer;
  if (value.number() != nullptr) return std::abs(*value.number());
  if (!integer) {
    value.must_be_defined();
    throw Failure(fmt::format("bad operand type for abs(): '{}'", type_name(value)));
  }
  return negative(value);
}

Value attribute(Engine& engine, const Value& value, Given given) {
  const std::string name = to_text(engine.budget, *given[0]);
  if (Object* object = value.object()) {
    if (const Value* found = object->attribute(engine, name)) return *found;
  } else if (const auto method = method_of(value, name)) {
    return *method;
  }
  return Value::undefined(
      fmt::format("{} object has no attribute {}", type_name(value), repr(name)));
}

Value batch(Engine& engine, const Value& value, Given given) {
  const int64_t count = number(given[0], 0);
  std::vector<Value> rows, row;
  for (Value& item : items_of(engine, value)) {
    if (static_cast<int64_t>(row.size()) == count) {
      rows.push_back(make_list(engine.budget, std::move(row)));
      row.clear();
    }
    row.push_back(std::move(item));
  }
  if (!row.empty()) {
    const auto missing =
        static_cast<size_t>(std::max<int64_t>(0, count - static_cast<int64_t>(row.size())));
    if (given[1] != nullptr && !given[1]->is_none()) {
      engine.budget.bytes(missing * sizeof(Value));
      row.insert(row.end(), missing, *given[1]);
    }
    rows.push_back(make_list(engine.budget, std::move(row)));
  }
  return generator(engine, std::move(rows));
}

Value slices(Engine& engine, const Value& value, Given given) {
  const std::vector<Value> items = items_of(engine, value);
  const int64_t count = number(given[0], 0);
  if (count == 0) throw Failure("integer division or modulo by zero");
  const auto size = static_cast<int64_t>(items.size());
  std::vector<Value> rows;
  int64_t at = 0;
  for (int64_t i = 0; i < count; ++i) {
    engine.budget.step();
    const int64_t here = size / count + (i < size % count ? 1 : 0);
    std::vector<Value> row(items.begin() + at, items.begin() + at + here);
    at += here;
    const bool filled = given[1] != nullptr && !given[1]->is_none();
    if (filled && size % count != 0 && i >= size % count) row.push_back(*given[1]);
    rows.push_back(make_list(engine.budget, std::move(row)));
  }
  return generator(engine, std::move(rows));
}

template <std::string (*change)(std::string_view)>
Value changed(Engine& engine, const Value& value, Given) {
  const Value soft = soft_text(engine, value);
  return like(engine, soft, change(soft.text()->bytes));
}

// Words begin behind white space and - ( { [ <, as Jinja's own filter has it.
std::string title_words(std::string_view text) {
  std::string out;
  bool begins = true;
  for (const std::string_view character : characters(text)) {
    const bool breaks = std::string_view("-({[<").find(character) != std::string_view::npos ||
                        strip(character).empty();
    if (breaks) {
      out += character;
    } else {
      out += begins ? to_upper(character) : to_lower(character);
    }
    begins = breaks;
  }
  return out;
}

Value centered(Engine& engine, const Value& value, Given given) {
  Arguments arguments;
  arguments.list.push_back(given[0] == nullptr ? Value(int64_t{80}) : *given[0]);
  return through(engine, value, "center", std::move(arguments));
}

Value length(Engine&, const Value& value, Given) { return length_of(value); }

Value or_default(Engine&, const Value& value, Given given) {
  if (!value.is_undefined() && !(flag(given[1]) && !truth(value))) return value;
  return given[0] == nullptr ? Value(std::string()) : *given[0];
}

Value sorted(Engine& engine, std::vector<Value> items, bool reverse,
             const std::function<Value(const Value&)>& key) {
  std::vector<std::pair<Value, size_t>> keys;
  for (size_t i = 0; i < items.size(); ++i) keys.emplace_back(key(items[i]), i);
  engine.budget.bytes(items.size() * 2 * sizeof(Value));
  // Equal ones keep their order, in reverse too.
  std::stable_sort(keys.begin(), keys.end(), [&](const auto& a, const auto& b) {
    const int order = compare(engine.budget, a.first, b.first, "<");
    return reverse ? order > 0 : order < 0;
  });
  std::vector<Value> result;
  for (const auto& item : keys) result.push_back(std::move(items[item.second]));
  return make_list(engine.budget, std::move(result));
}

Value dict_sort(Engine& engine, const Value& value, Given given) {
  value.must_be_defined();
  if (value.dict() == nullptr) {
    throw Failure(fmt::format("'{}' object has no attribute 'items'", type_name(value)));
  }
  const std::string by = given[1] == nullptr ? "key" : to_text(engine.budget, *given[1]);
  if (by != "key" && by != "value")
    throw Failure("You can only sort by either \"key\" or \"value\"");
  std::vector<Value> items;
  for (const auto& [key, item] : value.dict()->items) {
    items.push_back(make_list(engine.budget, {key, item}, List::Type::tuple));
  }
  const bool fold = !flag(given[0]);
  return sorted(engine, std::move(items), flag(given[2]), [&](const Value& item) {
    const Value& part = item.list()->items[by == "key" ? 0 : 1];
    return fold ? lower_case(engine, part) : part;
  });
}

Value sort(Engine& engine, const Value& value, Given given) {
  std::vector<AttributeGetter> getters;
  const bool fold = !flag(given[1]);
  if (given[2] != nullptr && given[2]->text() != nullptr) {
    std::string_view rest = given[2]->text()->bytes;
    while (true) {
      const size_t comma = std::min(rest.find(','), rest.size());
      const Value part(std::string(rest.substr(0, comma)));
      getters.emplace_back(&part, nullptr, fold);
      if (comma == rest.size()) break;
      rest.remove_prefix(comma + 1);
    }
  } else {
    getters.emplace_back(given[2], nullptr, fold);
  }
  return sorted(engine, items_of(engine, value), flag(given[0]), [&](const Value& item) {
    std::vector<Value> key;
    for (const AttributeGetter& getter : getters) key.push_back(getter(engine, item));
    return make_list(engine.budget, std::move(key));
  });
}

Value unique(Engine& engine, const Value& value, Given given) {
  const AttributeGetter key(given[1], nullptr, !flag(given[0]));
  Dict seen;
  std::vector<Value> result;
  for (Value& item : items_of(engine, value)) {
    const Value own = key(engine, item);
    if (seen.find(engine.budget, own) != nullptr) continue;
    seen.set(engine.budget, own, Value::none());
    result.push_back(std::move(item));
  }
  return generator(engine, std::move(result));
}

template <bool largest>
Value extreme(Engine& engine, const Value& value, Given given) {
  const AttributeGetter key(given[1], nullptr, !flag(given[0]));
  const std::vector<Value> items = items_of(engine, value);
  if (items.empty()) return Value::undefined("No aggregated item, sequence was empty.");
  size_t best = 0;
  Value best_key = key(engine, items[0]);
  for (size_t i = 1; i < items.size(); ++i) {
    const Value own = key(engine, items[i]);
    const int order = compare(engine.budget, own, best_key, largest ? ">" : "<");
    if (largest ? order > 0 : order < 0) {
      best = i;
      best_key = own;
    }
  }
  return items[best];
}

Value escape(Engine& engine, const Value& value, Given) {
  if (value.text() != nullptr && value.text()->safe) return value;
  return make_text(engine.budget, escape_html(to_text(engine.budget, value)), true);
}

Value force_escape(Engine& engine, const Value& value, Given) {
  return make_text(engine.budget, escape_html(to_text(engine.budget, value)), true);
}

Value safe(Engine& engine, const Value& value, Given) {
  return make_text(engine.budget, to_text(engine.budget, value), true);
}

Value file_size(Engine& engine, const Value& value, Given given) {
  const auto given_size = real(value);
  if (!given_size) throw Failure("filesizeformat needs a number");
  const bool binary = flag(given[0]);
  const double base = binary ? 1024 : 1000, size = *given_size;
  if (size == 1) return make_text(engine.budget, "1 Byte");
  if (size < base) return make_text(engine.budget, fmt::format("{:.0f} Bytes", std::trunc(size)));
  constexpr std::string_view kPrefixes = "kMGTPEZY";
  double unit = base;
  for (size_t i = 0; i < kPrefixes.size(); ++i) {
    if (size < unit * base || i + 1 == kPrefixes.size()) {
      const std::string prefix =
          binary ? fmt::format("{}i", i == 0 ? 'K' : kPrefixes[i]) : std::string(1, kPrefixes[i]);
      return make_text(engine.budget, fmt::format("{:.1f} {}B", size / unit, prefix));
    }
    unit *= base;
  }
  return Value();
}

Value first(Engine& engine, const Value& value, Given) {
  if (List* list = value.list(); list != nullptr && list->type == List::Type::generator) {
    if (list->next < list->items.size()) return list->items[list->next++];
  } else if (std::vector<Value> items = items_of(engine, value); !items.empty()) {
    return items.front();
  }
  return Value::undefined("No first item, sequence was empty.");
}

Value last(Engine& engine, const Value& value, Given) {
  const List* list = value.list();
  if (!is_iterable(value) || (list != nullptr && list->type == List::Type::generator)) {
    throw Failure(fmt::format("'{}' object is not reversible", type_name(value)));
  }
  std::vector<Value> items = items_of(engine, value);
  if (items.empty()) return Value::undefined("No last item, sequence was empty.");
  return items.back();
}

Value reverse(Engine& engine, const Value& value, Given) {
  std::vector<Value> items = items_of(engine, value);
  std::reverse(items.begin(), items.end());
  if (value.text() == nullptr) {
    const List* list = value.list();
    const bool was_generator = list != nullptr && list->type == List::Type::generator;
    return make_list(engine.budget, std::move(items),
                     was_generator ? List::Type::list : List::Type::generator);
  }
  std::string out;
  for (const Value& item : items) out += item.text()->bytes;
  return like(engine, value, std::move(out));
}

// float() of Python; nothing for what is no number.
std::optional<double> parse_real(std::string_view text) {
  std::string digits;
  for (const char c : strip(text)) {
    if (c != '_') digits += c;
  }
  const bool plus = digits.starts_with('+');
  double result = 0;
  const char* const begin = digits.data() + (plus ? 1 : 0);
  const char* const end = digits.data() + digits.size();
  const auto [stop, code] = std::from_chars(begin, end, result);
  if (code == std::errc::invalid_argument || stop != end || begin == end) return {};
  return result;
}

std::optional<int64_t> parse_whole(std::string_view text, int64_t base) {
  std::string digits;
  for (const char c : strip(text)) {
    if (c != '_') digits += c;
  }
  const bool minus = digits.starts_with('-');
  if (minus || digits.starts_with('+')) digits.erase(0, 1);
  const auto prefixed = [&](int64_t of, char letter) {
    if ((base != of && base != 0) || digits.size() < 2 || digits[0] != '0') return;
    if (digits[1] != letter && digits[1] != letter - 32) return;
    digits.erase(0, 2);
    base = of;
  };
  prefixed(16, 'x');
  prefixed(8, 'o');
  prefixed(2, 'b');
  if (base == 0) base = 10;
  if (base < 2 || base > 36 || digits.starts_with('-')) return {};
  int64_t result = 0;
  const char* const end = digits.data() + digits.size();
  const auto [stop, code] = std::from_chars(digits.data(), end, result, static_cast<int>(base));
  if (code != std::errc() || stop != end) return {};
  return minus ? -result : result;
}

std::optional<int64_t> truncated(double value) {
  if (!(std::abs(value) < 9.2e18)) return {};
  return static_cast<int64_t>(value);
}

Value to_whole(Engine&, const Value& value, Given given) {
  const Value fallback = given[0] == nullptr ? Value(int64_t{0}) : *given[0];
  value.must_be_defined();
  std::optional<int64_t> result = whole(value);
  if (value.number() != nullptr) result = truncated(*value.number());
  if (value.text() != nullptr) {
    result = parse_whole(value.text()->bytes, number(given[1], 10));
    const auto fraction = parse_real(value.text()->bytes);
    if (!result && fraction) result = truncated(*fraction);
  }
  return result ? Value(*result) : fallback;
}

Value to_real(Engine&, const Value& value, Given given) {
  value.must_be_defined();
  std::optional<double> result = real(value);
  if (value.text() != nullptr) result = parse_real(value.text()->bytes);
  if (result) return *result;
  return given[0] == nullptr ? Value(0.0) : *given[0];
}

Value group_by(Engine& engine, const Value& value, Given given) {
  const bool fold = given[2] == nullptr || !truth(*given[2]);
  const AttributeGetter key(given[0], given[1], fold), shown(given[0], given[1], false);
  const Value list = sorted(engine, items_of(engine, value), false,
                            [&](const Value& item) { return key(engine, item); });
  std::vector<Value> groups, members;
  const auto close = [&] {
    if (members.empty()) return;
    const Value name = shown(engine, members.front());
    groups.push_back(make_list(engine.budget, {name, make_list(engine.budget, std::move(members))},
                               List::Type::tuple));
    members.clear();
  };
  for (const Value& item : list.list()->items) {
    if (!members.empty() &&
        !equal(engine.budget, key(engine, members.front()), key(engine, item))) {
      close();
    }
    members.push_back(item);
  }
  close();
  return make_list(engine.budget, std::move(groups));
}

Value indent(Engine& engine, const Value& value, Given given) {
  value.must_be_defined();
  if (value.text() == nullptr) {
    throw Failure(fmt::format("indent needs a string, not {}", type_name(value)));
  }
  std::string indention;
  if (given[0] != nullptr && given[0]->text() != nullptr) {
    indention = given[0]->text()->bytes;
  } else {
    const int64_t width = std::max<int64_t>(0, number(given[0], 4));
    engine.budget.bytes(static_cast<size_t>(width));
    indention.assign(static_cast<size_t>(width), ' ');
  }
  const std::string text = value.text()->bytes + "\n";
  std::string out = flag(given[1]) ? indention : "";
  bool begins = true;
  for (const std::string_view line : lines_of(text, false)) {
    if (!begins) out += '\n';
    if (!begins && (flag(given[2]) || !line.empty())) {
      engine.budget.bytes(indention.size());
      out += indention;
    }
    out += line;
    begins = false;
  }
  return like(engine, value, std::move(out));
}

Value join(Engine& engine, const Value& value, Given given) {
  const std::string separator = given[0] == nullptr ? "" : to_text(engine.budget, *given[0]);
  const AttributeGetter getter(given[1], nullptr, false);
  std::string out;
  bool begins = true;
  for (const Value& item : items_of(engine, value)) {
    engine.budget.bytes(separator.size());
    if (!begins) out += separator;
    out += to_text(engine.budget, getter(engine, item));
    begins = false;
  }
  return Value(std::move(out));
}

Value list(Engine& engine, const Value& value, Given) {
  return make_list(engine.budget, items_of(engine, value));
}

Value items(Engine& engine, const Value& value, Given) {
  if (value.is_undefined()) return generator(engine, {});
  if (value.dict() == nullptr) throw Failure("Can only get item pairs from a mapping.");
  std::vector<Value> pairs;
  for (const auto& [key, item] : value.dict()->items) {
    pairs.push_back(make_list(engine.budget, {key, item}, List::Type::tuple));
  }
  return generator(engine, std::move(pairs));
}

Value replaced(Engine& engine, const Value& value, Given given) {
  const std::string text = to_text(engine.budget, value), from = to_text(engine.budget, *given[0]),
                    to = to_text(engine.budget, *given[1]);
  const int64_t most = number(given[2], -1);
  engine.budget.bytes(to.size() * static_cast<size_t>(count_of(text, from, most)));
  return make_text(engine.budget, replace(text, from, to, most));
}

Value rounded(Engine&, const Value& value, Given given) {
  value.must_be_defined();
  const auto input = real(value);
  if (!input)
    throw Failure(fmt::format("type {} doesn't define __round__ method", type_name(value)));
  const int64_t precision = number(given[0], 0);
  const std::string method =
      given[1] == nullptr || given[1]->text() == nullptr ? "common" : given[1]->text()->bytes;
  if (method != "common" && method != "ceil" && method != "floor") {
    throw Failure("method must be common, ceil or floor");
  }
  if (method == "common") {
    if (whole(value) && precision >= 0) return *whole(value);
    if (precision > 300 || precision < -300) return *input;
    if (precision < 0) {
      const double unit = std::pow(10.0, static_cast<double>(-precision));
      const double result = std::nearbyint(*input / unit) * unit;
      return whole(value) ? Value(static_cast<int64_t>(result)) : Value(result);
    }
    // As many correctly rounded decimals, read back.
    return std::strtod(fmt::format("{:.{}f}", *input, precision).c_str(), nullptr);
  }
  const double unit = std::pow(10.0, static_cast<double>(precision));
  return (method == "ceil" ? std::ceil(*input * unit) : std::floor(*input * unit)) / unit;
}

Value text(Engine& engine, const Value& value, Given) { return soft_text(engine, value); }

Value sum(Engine& engine, const Value& value, Given given) {
  const AttributeGetter getter(given[0], nullptr, false);
  Value total = given[1] == nullptr ? Value(int64_t{0}) : *given[1];
  for (const Value& item : items_of(engine, value)) {
    total = add(engine, total, getter(engine, item));
  }
  return total;
}

Value trim(Engine& engine, const Value& value, Given given) {
  Arguments arguments;
  if (given[0] != nullptr) arguments.list.push_back(*given[0]);
  return through(engine, value, "strip", std::move(arguments));
}

Value truncate(Engine& engine, const Value& value, Given given) {
  value.must_be_defined();
  if (value.text() == nullptr) throw Failure("truncate needs a string");
  const int64_t length = number(given[0], 255), leeway = number(given[3], 5);
  const std::string end = given[2] == nullptr ? "..." : to_text(engine.budget, *given[2]);
  const int64_t kept = length - character_count(end);
  if (kept < 0)
    throw Failure(fmt::format("expected length >= {}, got {}", character_count(end), length));
  const std::vector<std::string_view> all = characters(value.text()->bytes);
  if (static_cast<int64_t>(all.size()) <= length + leeway) return value;
  std::string out;
  for (int64_t i = 0; i < kept; ++i) out += all[static_cast<size_t>(i)];
  if (!flag(given[1])) {
    if (const size_t space = out.rfind(' '); space != out.npos) out.resize(space);
  }
  return like(engine, value, out + end);
}

Value quoted_for_url(Engine& engine, const Value& value, Given) {
  const auto quote = [&](const Value& part, bool query) {
    std::string out;
    for (const char c : to_text(engine.budget, part)) {
      const auto byte = static_cast<unsigned char>(c);
      const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                         (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-' || c == '~' ||
                         (c == '/' && !query);
      out += plain ? std::string(1, c) : query && c == ' ' ? "+" : fmt::format("%{:02X}", byte);
    }
    return out;
  };
  if (value.dict() == nullptr) return make_text(engine.budget, quote(value, false));
  std::string out;
  for (const auto& [key, item] : value.dict()->items) {
    if (!out.empty()) out += '&';
    out += quote(key, true) + "=" + quote(item, true);
  }
  return make_text(engine.budget, std::move(out));
}

Value word_count(Engine& engine, const Value& value, Given) {
  int64_t count = 0;
  bool inside = false;
  for (const std::string_view character : characters(to_text(engine.budget, value))) {
    const bool word = every_character(character, is_word);
    count += word && !inside ? 1 : 0;
    inside = word;
  }
  return count;
}

Value json(Engine& engine, const Value& value, Given given) {
  JsonStyle style;
  style.ascii = flag(given[0]);
  style.sort_keys = flag(given[3]);
  if (given[1] != nullptr && !given[1]->is_none()) {
    if (const auto width = whole(*given[1])) {
      engine.budget.bytes(static_cast<size_t>(std::max<int64_t>(0, *width)));
      style.indent = std::string(static_cast<size_t>(std::max<int64_t>(0, *width)), ' ');
    } else {
      style.indent = to_text(engine.budget, *given[1]);
    }
    style.item_separator = ",";
  }
  if (given[2] != nullptr && !given[2]->is_none()) {
    const std::vector<Value> both = items_of(engine, *given[2]);
    if (both.size() != 2 || both[0].text() == nullptr || both[1].text() == nullptr) {
      throw Failure("separators must be two strings");
    }
    style.item_separator = both[0].text()->bytes;
    style.key_separator = both[1].text()->bytes;
  }
  return Value(to_json(engine.budget, value, style));
}

Value map(Engine& engine, const Value& value, Arguments& arguments) {
  std::vector<Value> result;
  if (!truth(value)) return generator(engine, {});
  const bool by_attribute = arguments.list.empty() && !arguments.named.empty();
  if (by_attribute) {
    const auto given = bind_arguments("map", "attribute default", 0, arguments);
    if (given[0] == nullptr) throw Failure("map requires a filter argument");
    const AttributeGetter getter(given[0], given[1], false);
    for (const Value& item : items_of(engine, value)) result.push_back(getter(engine, item));
  } else {
    if (arguments.list.empty()) throw Failure("map requires a filter argument");
    const std::string name = to_text(engine.budget, arguments.list.front());
    for (const Value& item : items_of(engine, value)) {
      Arguments rest{{arguments.list.begin() + 1, arguments.list.end()}, arguments.named};
      result.push_back(call_filter(engine, name, item, rest));
    }
  }
  return generator(engine, std::move(result));
}

template <bool wanted, bool by_attribute>
Value select(Engine& engine, const Value& value, Arguments& arguments) {
  if (!truth(value)) return generator(engine, {});
  if (by_attribute && arguments.list.empty()) {
    throw Failure("Missing parameter for attribute name");
  }
  const size_t used = by_attribute ? 1 : 0;
  const AttributeGetter getter(by_attribute ? &arguments.list.front() : nullptr, nullptr, false);
  std::vector<Value> result;
  for (const Value& item : items_of(engine, value)) {
    const Value tested = getter(engine, item);
    bool holds = false;
    if (arguments.list.size() > used) {
      const std::string name = to_text(engine.budget, arguments.list[used]);
      Arguments rest{
          {arguments.list.begin() + static_cast<std::ptrdiff_t>(used) + 1, arguments.list.end()},
          arguments.named};
      holds = call_test(engine, name, tested, rest);
    } else {
      holds = truth(tested);
    }
    if (holds == wanted) result.push_back(item);
  }
  return generator(engine, std::move(result));
}

Value format(Engine& engine, const Value& value, Arguments& arguments) {
  const Value soft = soft_text(engine, value);
  if (!arguments.list.empty() && !arguments.named.empty()) {
    throw Failure("can't handle positional and keyword arguments at the same time");
  }
  Value values;
  if (arguments.named.empty()) {
    values = make_list(engine.budget, arguments.list, List::Type::tuple);
  } else {
    Dict dict;
    for (const auto& [name, item] : arguments.named) dict.set(engine.budget, Value(name), item);
    values = make_dict(engine.budget, std::move(dict));
  }
  return Value(format_percent(engine, soft.text()->bytes, values), soft.text()->safe);
}

constexpr Filter kFilters[] = {
    {"abs", "", 0, absolute},
    {"attr", "name", 1, attribute},
    {"batch", "linecount fill_with", 1, batch},
    {"capitalize", "", 0, changed<capitalized>},
    {"center", "width", 0, centered},
    {"count", "", 0, length},
    {"d", "default_value boolean", 0, or_default},
    {"default", "default_value boolean", 0, or_default},
    {"dictsort", "case_sensitive by reverse", 0, dict_sort},
    {"e", "", 0, escape},
    {"escape", "", 0, escape},
    {"filesizeformat", "binary", 0, file_size},
    {"first", "", 0, first},
    {"float", "default", 0, to_real},
    {"forceescape", "", 0, force_escape},
    {"groupby", "attribute default case_sensitive", 1, group_by},
    {"indent", "width first blank", 0, indent},
    {"int", "default base", 0, to_whole},
    {"items", "", 0, items},
    {"join", "d attribute", 0, join},
    {"last", "", 0, last},
    {"length", "", 0, length},
    {"list", "", 0, list},
    {"lower", "", 0, changed<to_lower>},
    {"max", "case_sensitive attribute", 0, extreme<true>},
    {"min", "case_sensitive attribute", 0, extreme<false>},
    {"replace", "old new count", 2, replaced},
    {"reverse", "", 0, reverse},
    {"round", "precision method", 0, rounded},
    {"safe", "", 0, safe},
    {"slice", "slices fill_with", 1, slices},
    {"sort", "reverse case_sensitive attribute", 0, sort},
    {"string", "", 0, text},
    {"sum", "attribute start", 0, sum},
    {"title", "", 0, changed<title_words>},
    {"tojson", "ensure_ascii indent separators sort_keys", 0, json},
    {"trim", "chars", 0, trim},
    {"truncate", "length killwords end leeway", 0, truncate},
    {"unique", "case_sensitive attribute", 0, unique},
    {"upper", "", 0, changed<to_upper>},
    {"urlencode", "", 0, quoted_for_url},
    {"wordcount", "", 0, word_count},
};

constexpr FreeFilter kFreeFilters[] = {
    {"format", format},
    {"map", map},
    {"reject", select<false, false>},
    {"rejectattr", select<false, true>},
    {"select", select<true, false>},
    {"selectattr", select<true, true>},
};

template <typename Table>
auto find_in(const Table& table, std::string_view name) {
  const auto* found = std::find_if(std::begin(table), std::end(table),
                                   [&](const auto& row) { return row.name == name; });
  return found == std::end(table) ? nullptr : found;
}

}  // namespace

bool has_filter(std::string_view name) {
  return find_in(kFilters, name) != nullptr || find_in(kFreeFilters, name) != nullptr;
}

Value call_filter(Engine& engine, std::string_view name, const Value& value, Arguments& arguments) {
  const Engine::Level level(engine);
  engine.budget.step();
  if (const Filter* filter = find_in(kFilters, name)) {
    return filter->run(
        engine, value,
        bind_arguments(filter->name, filter->parameters, filter->required, arguments));
  }
  if (const FreeFilter* filter = find_in(kFreeFilters, name)) {
    return filter->run(engine, value, arguments);
  }
  throw Failure(fmt::format("No filter named {} found.", repr(name)));
}

}  // namespace pronghorn::jinja
