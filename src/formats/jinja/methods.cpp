// Methods of strings, lists, tuples and dictionaries.
#include <algorithm>
#include <limits>

#include "formats/jinja/engine.h"
#include "formats/jinja/text.h"

namespace pronghorn::jinja {
namespace {

using Given = std::span<const Value* const>;

struct Method {
  std::string_view name, parameters;
  size_t required;
  Value (*run)(Engine&, const Value& self, Given given);
};

std::string_view bytes_of(const Value& self) { return self.text()->bytes; }

std::string_view text_argument(const Value* value, std::string_view method) {
  if (value->text() == nullptr) {
    value->must_be_defined();
    throw Failure(fmt::format("{}() argument must be str, not {}", method, type_name(*value)));
  }
  return value->text()->bytes;
}

// A whole number, or the fallback where nothing or none was given.
int64_t number_argument(const Value* value, int64_t fallback, std::string_view method) {
  if (value == nullptr || value->is_none()) return fallback;
  value->must_be_defined();
  const auto number = whole(*value);
  if (!number) {
    throw Failure(
        fmt::format("{}() argument must be an integer, not {}", method, type_name(*value)));
  }
  return *number;
}

Value text_like(Engine& engine, const Value& self, std::string_view text) {
  return make_text(engine.budget, std::string(text), self.text()->safe);
}

Value list_of_texts(Engine& engine, const Value& self,
                    const std::vector<std::string_view>& pieces) {
  std::vector<Value> items;
  items.reserve(pieces.size());
  for (const std::string_view piece : pieces) items.push_back(text_like(engine, self, piece));
  return make_list(engine.budget, std::move(items));
}

template <std::string (*change)(std::string_view)>
Value changed(Engine& engine, const Value& self, Given) {
  return text_like(engine, self, change(bytes_of(self)));
}

template <bool left, bool right>
Value stripped(Engine& engine, const Value& self, Given given) {
  if (given[0] == nullptr || given[0]->is_none()) {
    return text_like(engine, self, strip(bytes_of(self), left, right));
  }
  const std::string_view set = text_argument(given[0], "strip");
  engine.budget.step(static_cast<int64_t>(1 + set.size() / 16) *
                     static_cast<int64_t>(1 + bytes_of(self).size() / 16));
  return text_like(engine, self, strip(bytes_of(self), set, left, right));
}

template <bool from_right>
Value split(Engine& engine, const Value& self, Given given) {
  const std::string_view text = bytes_of(self);
  const int64_t most = number_argument(given[1], -1, "split");
  engine.budget.bytes(text.size());
  if (given[0] == nullptr || given[0]->is_none()) {
    return list_of_texts(engine, self, split_at_space(text, most, from_right));
  }
  const std::string_view separator = text_argument(given[0], "split");
  if (separator.empty()) throw Failure("empty separator");
  std::vector<std::string_view> pieces;
  std::string_view rest = text;
  while (most < 0 || static_cast<int64_t>(pieces.size()) < most) {
    const size_t at = from_right ? rest.rfind(separator) : rest.find(separator);
    if (at == rest.npos) break;
    const std::string_view before = rest.substr(0, at), after = rest.substr(at + separator.size());
    pieces.push_back(from_right ? after : before);
    rest = from_right ? before : after;
  }
  pieces.push_back(rest);
  if (from_right) std::reverse(pieces.begin(), pieces.end());
  return list_of_texts(engine, self, pieces);
}

template <bool from_right>
Value partition(Engine& engine, const Value& self, Given given) {
  const std::string_view text = bytes_of(self), separator = text_argument(given[0], "partition");
  if (separator.empty()) throw Failure("empty separator");
  const size_t at = from_right ? text.rfind(separator) : text.find(separator);
  std::vector<Value> parts;
  if (at == text.npos) {
    const Value empty = text_like(engine, self, "");
    parts = from_right ? std::vector<Value>{empty, empty, self}
                       : std::vector<Value>{self, empty, empty};
  } else {
    parts = {text_like(engine, self, text.substr(0, at)), text_like(engine, self, separator),
             text_like(engine, self, text.substr(at + separator.size()))};
  }
  return make_list(engine.budget, std::move(parts), List::Type::tuple);
}

// The part of a text between positions of characters, as str.find and others take them.
struct Window {
  std::string_view text;
  int64_t first;  // character where it begins; below 0: there is no such part
};

Window window_of(Engine& engine, const Value& self, const Value* start, const Value* stop) {
  const std::string_view text = bytes_of(self);
  if (start == nullptr && stop == nullptr) return {text, 0};
  engine.budget.bytes(text.size());
  const std::vector<std::string_view> all = characters(text);
  const auto size = static_cast<int64_t>(all.size());
  const auto place = [&](const Value* value, int64_t fallback) {
    const int64_t given = number_argument(value, fallback, "find");
    return given < 0 ? std::max<int64_t>(0, given < -size ? 0 : given + size) : given;
  };
  const int64_t first = place(start, 0), last = std::min(place(stop, size), size);
  if (first > last) return {{}, -1};
  const auto offset = [&](int64_t at) {
    return at == size ? text.size()
                      : static_cast<size_t>(all[static_cast<size_t>(at)].data() - text.data());
  };
  return {text.substr(offset(first), offset(last) - offset(first)), first};
}

template <bool at_end>
Value starts_or_ends(Engine& engine, const Value& self, Given given) {
  const Window window = window_of(engine, self, given[1], given[2]);
  const auto matches = [&](const Value& part) {
    const char* name = at_end ? "endswith" : "startswith";
    if (part.text() == nullptr) {
      part.must_be_defined();
      throw Failure(
          fmt::format("{} first arg must be str or a tuple of str, not {}", name, type_name(part)));
    }
    return window.first >= 0 && (at_end ? window.text.ends_with(part.text()->bytes)
                                        : window.text.starts_with(part.text()->bytes));
  };
  if (const List* list = given[0]->list(); list != nullptr && list->type == List::Type::tuple) {
    return std::any_of(list->items.begin(), list->items.end(), matches);
  }
  return matches(*given[0]);
}

template <bool from_right, bool must_exist>
Value find(Engine& engine, const Value& self, Given given) {
  const std::string_view part = text_argument(given[0], "find");
  const Window window = window_of(engine, self, given[1], given[2]);
  engine.budget.step(static_cast<int64_t>(window.text.size() / 16));
  const size_t at = window.first < 0 ? std::string_view::npos
                    : from_right     ? window.text.rfind(part)
                                     : window.text.find(part);
  if (at == std::string_view::npos) {
    if (must_exist) throw Failure("substring not found");
    return int64_t{-1};
  }
  return window.first + character_count(window.text.substr(0, at));
}

Value count_text(Engine& engine, const Value& self, Given given) {
  const Window window = window_of(engine, self, given[1], given[2]);
  return window.first < 0 ? int64_t{0} : count_of(window.text, text_argument(given[0], "count"));
}

Value replace_text(Engine& engine, const Value& self, Given given) {
  const std::string_view text = bytes_of(self), from = text_argument(given[0], "replace");
  std::string to(text_argument(given[1], "replace"));
  if (self.text()->safe && !given[1]->text()->safe) to = escape_html(to);
  const int64_t most = number_argument(given[2], -1, "replace");
  // Before it is made: the result may be far larger than its parts.
  engine.budget.bytes(text.size() + to.size() * static_cast<size_t>(count_of(text, from, most)));
  return Value(replace(text, from, to, most), self.text()->safe);
}

Value join(Engine& engine, const Value& self, Given given) {
  std::string out;
  size_t index = 0;
  for (const Value& item : items_of(engine, *given[0])) {
    if (item.text() == nullptr) {
      throw Failure(
          fmt::format("sequence item {}: expected str instance, {} found", index, type_name(item)));
    }
    if (index++ > 0) out += bytes_of(self);
    const bool escape = self.text()->safe && !item.text()->safe;
    out += escape ? escape_html(item.text()->bytes) : item.text()->bytes;
    engine.budget.bytes(bytes_of(self).size() + item.text()->bytes.size());
  }
  return Value(std::move(out), self.text()->safe);
}

// Spaces, or another character, to fill a text up to a width.
std::string padding(Engine& engine, const Value& self, const Value* width, const Value* fill) {
  const int64_t missing = number_argument(width, 0, "just") - character_count(bytes_of(self));
  const std::string_view character = fill == nullptr ? " " : text_argument(fill, "just");
  if (character_count(character) != 1) {
    throw Failure("The fill character must be exactly one character long");
  }
  std::string out;
  if (missing > 0) engine.budget.bytes(static_cast<size_t>(missing) * character.size());
  for (int64_t i = 0; i < missing; ++i) out += character;
  return out;
}

template <bool left>
Value justify(Engine& engine, const Value& self, Given given) {
  const std::string fill = padding(engine, self, given[0], given[1]);
  const std::string text(bytes_of(self));
  return text_like(engine, self, left ? text + fill : fill + text);
}

Value center(Engine& engine, const Value& self, Given given) {
  const std::string fill = padding(engine, self, given[0], given[1]);
  const std::vector<std::string_view> all = characters(fill);
  // Where the two sides differ, the left is larger for an odd width (as CPython does it).
  const int64_t missing = static_cast<int64_t>(all.size());
  const int64_t width = number_argument(given[0], 0, "center");
  const int64_t left = missing / 2 + (missing & width & 1);
  std::string out;
  for (int64_t i = 0; i < left; ++i) out += all[static_cast<size_t>(i)];
  out += bytes_of(self);
  for (int64_t i = left; i < missing; ++i) out += all[static_cast<size_t>(i)];
  return text_like(engine, self, out);
}

Value zfill(Engine& engine, const Value& self, Given given) {
  const Value zero(std::string("0"));
  const std::string fill = padding(engine, self, given[0], &zero);
  const std::string_view text = bytes_of(self);
  const size_t sign = text.starts_with('-') || text.starts_with('+') ? 1 : 0;
  return text_like(engine, self,
                   std::string(text.substr(0, sign)) + fill + std::string(text.substr(sign)));
}

// True if there are characters and all are wanted.
template <bool (*wanted)(uint32_t)>
Value all_are(Engine& engine, const Value& self, Given) {
  engine.budget.step(static_cast<int64_t>(bytes_of(self).size() / 16));
  return every_character(bytes_of(self), wanted);
}

bool is_alphanumeric(uint32_t code) { return is_word(code) && code != '_'; }

template <bool upper>
Value has_case(Engine&, const Value& self, Given) {
  return is_cased(bytes_of(self), upper);
}

Value split_lines(Engine& engine, const Value& self, Given given) {
  return list_of_texts(engine, self,
                       lines_of(bytes_of(self), given[0] != nullptr && truth(*given[0])));
}

template <bool prefix>
Value without(Engine& engine, const Value& self, Given given) {
  const std::string_view text = bytes_of(self), part = text_argument(given[0], "removeprefix");
  if (part.empty()) return self;
  if (prefix && text.starts_with(part)) return text_like(engine, self, text.substr(part.size()));
  if (!prefix && text.ends_with(part)) {
    return text_like(engine, self, text.substr(0, text.size() - part.size()));
  }
  return self;
}

constexpr Method kTextMethods[] = {
    {"capitalize", "", 0, changed<capitalized>},
    {"casefold", "", 0, changed<to_lower>},
    {"center", "width fillchar", 1, center},
    {"count", "sub start end", 1, count_text},
    {"endswith", "suffix start end", 1, starts_or_ends<true>},
    {"find", "sub start end", 1, find<false, false>},
    {"index", "sub start end", 1, find<false, true>},
    {"isalnum", "", 0, all_are<is_alphanumeric>},
    {"isalpha", "", 0, all_are<is_letter>},
    {"isdecimal", "", 0, all_are<is_digit>},
    {"isdigit", "", 0, all_are<is_digit>},
    {"islower", "", 0, has_case<false>},
    {"isnumeric", "", 0, all_are<is_digit>},
    {"isspace", "", 0, all_are<is_space>},
    {"isupper", "", 0, has_case<true>},
    {"join", "iterable", 1, join},
    {"ljust", "width fillchar", 1, justify<true>},
    {"lower", "", 0, changed<to_lower>},
    {"lstrip", "chars", 0, stripped<true, false>},
    {"partition", "sep", 1, partition<false>},
    {"removeprefix", "prefix", 1, without<true>},
    {"removesuffix", "suffix", 1, without<false>},
    {"replace", "old new count", 2, replace_text},
    {"rfind", "sub start end", 1, find<true, false>},
    {"rindex", "sub start end", 1, find<true, true>},
    {"rjust", "width fillchar", 1, justify<false>},
    {"rpartition", "sep", 1, partition<true>},
    {"rsplit", "sep maxsplit", 0, split<true>},
    {"rstrip", "chars", 0, stripped<false, true>},
    {"split", "sep maxsplit", 0, split<false>},
    {"splitlines", "keepends", 0, split_lines},
    {"startswith", "prefix start end", 1, starts_or_ends<false>},
    {"strip", "chars", 0, stripped<true, true>},
    {"swapcase", "", 0, changed<swapped_case>},
    {"title", "", 0, changed<title_case>},
    {"upper", "", 0, changed<to_upper>},
    {"zfill", "width", 1, zfill},
};

Value list_count(Engine& engine, const Value& self, Given given) {
  return static_cast<int64_t>(
      std::count_if(self.list()->items.begin(), self.list()->items.end(),
                    [&](const Value& item) { return equal(engine.budget, item, *given[0]); }));
}

Value list_index(Engine& engine, const Value& self, Given given) {
  const std::vector<Value>& items = self.list()->items;
  const auto found = std::find_if(items.begin(), items.end(), [&](const Value& item) {
    return equal(engine.budget, item, *given[0]);
  });
  if (found == items.end()) {
    throw Failure(fmt::format("{} is not in {}", repr(engine.budget, *given[0]), type_name(self)));
  }
  return static_cast<int64_t>(found - items.begin());
}

Value same(Engine&, const Value& self, Given) { return self; }

constexpr Method kListMethods[] = {
    {"copy", "", 0, same},
    {"count", "value", 1, list_count},
    {"index", "value start stop", 1, list_index},
};
constexpr Method kTupleMethods[] = {
    {"count", "value", 1, list_count},
    {"index", "value start stop", 1, list_index},
};

Value dict_get(Engine& engine, const Value& self, Given given) {
  const Value* found = self.dict()->find(engine.budget, *given[0]);
  if (found != nullptr) return *found;
  return given[1] == nullptr ? Value::none() : *given[1];
}

template <List::Type type>
Value dict_view(Engine& engine, const Value& self, Given) {
  std::vector<Value> items;
  for (const auto& [key, value] : self.dict()->items) {
    if (type == List::Type::keys) items.push_back(key);
    if (type == List::Type::values) items.push_back(value);
    if (type == List::Type::items) {
      items.push_back(make_list(engine.budget, {key, value}, List::Type::tuple));
    }
  }
  return make_list(engine.budget, std::move(items), type);
}

constexpr Method kDictMethods[] = {
    {"copy", "", 0, same},
    {"get", "key default", 1, dict_get},
    {"items", "", 0, dict_view<List::Type::items>},
    {"keys", "", 0, dict_view<List::Type::keys>},
    {"values", "", 0, dict_view<List::Type::values>},
};

constexpr std::string_view kListChangers[] = {"append", "clear",  "extend",  "insert",
                                              "pop",    "remove", "reverse", "sort"};
constexpr std::string_view kDictChangers[] = {"clear", "pop", "popitem", "setdefault", "update"};

std::span<const Method> methods_of(const Value& value) {
  if (value.text() != nullptr) return kTextMethods;
  if (value.dict() != nullptr) return kDictMethods;
  if (const List* list = value.list()) {
    if (list->type == List::Type::list) return kListMethods;
    if (list->type == List::Type::tuple || list->type == List::Type::range) return kTupleMethods;
  }
  return {};
}

bool would_change(const Value& value, std::string_view name) {
  const auto among = [&](std::span<const std::string_view> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (value.dict() != nullptr) return among(kDictChangers);
  return value.list() != nullptr && value.list()->type == List::Type::list && among(kListChangers);
}

}  // namespace

std::optional<Value> method_of(const Value& value, std::string_view name) {
  if (would_change(value, name)) {
    return Value::undefined(fmt::format("access to attribute {} of {} object is unsafe.",
                                        repr(name), repr(type_name(value))));
  }
  if (value.text() != nullptr && name == "format") {
    return make_function(
        "format",
        [value](Engine& engine, Arguments& arguments) {
          return Value(format_braces(engine, value.text()->bytes, arguments), value.text()->safe);
        },
        value);
  }
  for (const Method& method : methods_of(value)) {
    if (method.name != name) continue;
    return make_function(
        std::string(name),
        [&method, value](Engine& engine, Arguments& arguments) {
          return method.run(
              engine, value,
              bind_arguments(method.name, method.parameters, method.required, arguments));
        },
        value);
  }
  return {};
}

Value attribute_of(Engine& engine, const Value& value, const std::string& name) {
  value.must_be_defined();
  if (Object* object = value.object()) {
    if (const Value* found = object->attribute(engine, name)) return *found;
  } else if (std::optional<Value> method = method_of(value, name)) {
    return *method;
  } else if (const Dict* dict = value.dict()) {
    if (const Value* found = dict->find(name)) return *found;
  }
  const std::string type = value.is_none() ? "None" : type_name(value) + " object";
  return Value::undefined(fmt::format("{} has no attribute {}", repr(type), repr(name)));
}

Value item_of(Engine& engine, const Value& value, const Value& key) {
  value.must_be_defined();
  if (const Dict* dict = value.dict()) {
    const Value* found = key.is_undefined() ? nullptr : dict->find(engine.budget, key);
    if (found != nullptr) return *found;
  }
  const std::optional<int64_t> index = whole(key);
  const List* list = value.list();
  if (index && list != nullptr && list->type <= List::Type::range) {
    const auto size = static_cast<int64_t>(list->items.size());
    const int64_t at = *index < 0 ? *index + size : *index;
    if (at >= 0 && at < size) return list->items[static_cast<size_t>(at)];
  }
  if (index && value.text() != nullptr) {
    const std::string_view text = value.text()->bytes;
    engine.budget.step(static_cast<int64_t>(text.size() / 16));
    const int64_t size = character_count(text);
    const int64_t at = *index < 0 ? *index + size : *index;
    if (at >= 0 && at < size) {
      return make_text(engine.budget, std::string(character_at(text, at)), value.text()->safe);
    }
  }
  if (const Text* name = key.text()) return attribute_of(engine, value, name->bytes);
  const std::string type = value.is_none() ? "None" : type_name(value) + " object";
  return Value::undefined(fmt::format("{} has no element {}", type, repr(engine.budget, key)));
}

}  // namespace pronghorn::jinja
