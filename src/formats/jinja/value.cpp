#include "formats/jinja/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "formats/jinja/engine.h"
#include "formats/jinja/text.h"
#include "formats/utf8.h"

namespace pronghorn::jinja {
namespace {

void check_depth(int depth) {
  if (depth > kMaxDataDepth) throw Failure("lists and dictionaries are nested too deep");
}

bool is_number(const Value& value) { return real(value).has_value(); }

long double exact(const Value& value) {
  if (const auto integer = whole(value)) return static_cast<long double>(*integer);
  return static_cast<long double>(*value.number());
}

bool is_sequence_type(List::Type type) {
  return type == List::Type::list || type == List::Type::tuple || type == List::Type::range;
}

}  // namespace

void Budget::exceeded(std::string_view what, int64_t limit) {
  throw Failure(fmt::format("the template needs more than the {} {} that it may use", limit, what));
}

bool Value::same_as(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (is_none()) return true;
  if (const bool* value = boolean()) return *value == *other.boolean();
  if (const int64_t* value = integer()) return *value == *other.integer();
  if (const Text* value = text())
    return value == other.text() || value->bytes == other.text()->bytes;
  if (const List* value = list()) return value == other.list();
  if (const Dict* value = dict()) return value == other.dict();
  if (const Object* value = object()) return value == other.object();
  return false;
}

void Value::must_be_defined() const {
  if (const auto* undefined = std::get_if<Undefined>(&data_)) {
    throw Failure(undefined->message == nullptr ? "the value is undefined" : *undefined->message);
  }
}

void Dict::set(Budget& budget, const Value& key, const Value& value) {
  if (const Text* text = key.text()) {
    if (const auto found = texts.find(text->bytes); found != texts.end()) {
      items[found->second].second = value;
    } else {
      items.emplace_back(key, value);
      texts.emplace(items.back().first.text()->bytes, items.size() - 1);
    }
  } else {
    const bool hashable = key.dict() == nullptr &&
                          (key.list() == nullptr || key.list()->type == List::Type::tuple) &&
                          !key.is_undefined();
    if (!hashable) throw Failure(fmt::format("unhashable type: '{}'", type_name(key)));
    const auto found = std::find_if(items.begin(), items.end(), [&](const auto& item) {
      return equal(budget, item.first, key);
    });
    if (found != items.end()) {
      found->second = value;
    } else {
      items.emplace_back(key, value);
    }
  }
  depth = std::max({depth, 1 + depth_of(value), 1 + depth_of(key)});
}

const Value* Dict::find(std::string_view key) const {
  const auto found = texts.find(key);
  return found == texts.end() ? nullptr : &items[found->second].second;
}

const Value* Dict::find(Budget& budget, const Value& key) const {
  if (const Text* text = key.text()) return find(text->bytes);
  if (texts.size() == items.size()) return nullptr;
  for (const auto& [own, value] : items) {
    if (equal(budget, own, key)) return &value;
  }
  return nullptr;
}

int depth_of(const Value& value) {
  if (const List* list = value.list()) return list->depth;
  if (const Dict* dict = value.dict()) return dict->depth;
  if (const Object* object = value.object()) return object->depth;
  return 0;
}

Value make_list(Budget& budget, std::vector<Value> items, List::Type type) {
  budget.bytes(sizeof(List) + items.size() * sizeof(Value));
  auto list = std::make_shared<List>();
  for (const Value& item : items) list->depth = std::max(list->depth, 1 + depth_of(item));
  check_depth(list->depth);
  list->type = type;
  list->items = std::move(items);
  return Value::Data(std::move(list));
}

Value make_dict(Budget& budget, Dict dict) {
  budget.bytes(sizeof(Dict) + dict.items.size() * 4 * sizeof(Value));
  check_depth(dict.depth);
  // Not moved: the index views the keys, whose texts stay where they are.
  return Value::Data(std::shared_ptr<const Dict>(std::make_shared<Dict>(std::move(dict))));
}

Value make_text(Budget& budget, std::string text, bool safe) {
  budget.bytes(text.size());
  return Value(std::move(text), safe);
}

Value from_json(Budget& budget, const nlohmann::ordered_json& json, int depth) {
  check_depth(depth);
  switch (json.type()) {
    case nlohmann::json::value_t::boolean:
      return json.get<bool>();
    case nlohmann::json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        throw Failure(fmt::format("the number {} is too large", json.get<uint64_t>()));
      }
      return json.get<int64_t>();
    case nlohmann::json::value_t::number_integer:
      return json.get<int64_t>();
    case nlohmann::json::value_t::number_float:
      return json.get<double>();
    case nlohmann::json::value_t::string:
      return make_text(budget, json.get<std::string>());
    case nlohmann::json::value_t::array: {
      std::vector<Value> items;
      for (const auto& item : json) items.push_back(from_json(budget, item, depth + 1));
      return make_list(budget, std::move(items));
    }
    case nlohmann::json::value_t::object: {
      Dict dict;
      for (const auto& [key, item] : json.items()) {
        dict.set(budget, make_text(budget, key), from_json(budget, item, depth + 1));
      }
      return make_dict(budget, std::move(dict));
    }
    default:
      return Value::none();
  }
}

std::string type_name(const Value& value) {
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "NoneType";
  if (value.boolean() != nullptr) return "bool";
  if (value.integer() != nullptr) return "int";
  if (value.number() != nullptr) return "float";
  if (const Text* text = value.text()) return text->safe ? "Markup" : "str";
  if (value.dict() != nullptr) return "dict";
  if (const List* list = value.list()) {
    switch (list->type) {
      case List::Type::list:
        return "list";
      case List::Type::tuple:
        return "tuple";
      case List::Type::range:
        return "range";
      case List::Type::keys:
        return "dict_keys";
      case List::Type::values:
        return "dict_values";
      case List::Type::items:
        return "dict_items";
      case List::Type::generator:
        return "generator";
    }
  }
  return value.object()->type_name();
}

bool truth(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (const auto number = real(value)) return *number != 0;
  if (const Text* text = value.text()) return !text->bytes.empty();
  if (const Dict* dict = value.dict()) return !dict->items.empty();
  if (const List* list = value.list()) {
    return list->type == List::Type::generator || !list->items.empty();
  }
  return true;
}

std::optional<int64_t> whole(const Value& value) {
  if (const bool* boolean = value.boolean()) return *boolean ? 1 : 0;
  if (const int64_t* integer = value.integer()) return *integer;
  return {};
}

std::optional<double> real(const Value& value) {
  if (const auto integer = whole(value)) return static_cast<double>(*integer);
  if (const double* number = value.number()) return *number;
  return {};
}

bool equal(Budget& budget, const Value& a, const Value& b) {
  budget.step();
  if (a.is_undefined() || b.is_undefined()) return a.is_undefined() && b.is_undefined();
  if (is_number(a) && is_number(b)) return exact(a) == exact(b);
  if (a.text() != nullptr && b.text() != nullptr) {
    budget.step(
        static_cast<int64_t>(std::min(a.text()->bytes.size(), b.text()->bytes.size()) / 64));
    return a.text()->bytes == b.text()->bytes;
  }
  if (a.list() != nullptr && b.list() != nullptr) {
    const List &x = *a.list(), &y = *b.list();
    if (&x == &y) return true;
    if (x.type != y.type || x.type == List::Type::generator || x.items.size() != y.items.size()) {
      return false;
    }
    return std::equal(x.items.begin(), x.items.end(), y.items.begin(),
                      [&](const Value& p, const Value& q) { return equal(budget, p, q); });
  }
  if (a.dict() != nullptr && b.dict() != nullptr) {
    const Dict &x = *a.dict(), &y = *b.dict();
    if (x.items.size() != y.items.size()) return false;
    return std::all_of(x.items.begin(), x.items.end(), [&](const auto& item) {
      const Value* other = y.find(budget, item.first);
      return other != nullptr && equal(budget, item.second, *other);
    });
  }
  return a.same_as(b);
}

int compare(Budget& budget, const Value& a, const Value& b, std::string_view symbol) {
  budget.step();
  a.must_be_defined();
  b.must_be_defined();
  if (is_number(a) && is_number(b)) {
    const long double x = exact(a), y = exact(b);
    return x < y ? -1 : x > y ? 1 : 0;
  }
  if (a.text() != nullptr && b.text() != nullptr) {
    // The order of code points is that of UTF-8's bytes.
    const int order = a.text()->bytes.compare(b.text()->bytes);
    return order < 0 ? -1 : order > 0 ? 1 : 0;
  }
  const List *x = a.list(), *y = b.list();
  if (x != nullptr && y != nullptr && x->type == y->type &&
      (x->type == List::Type::list || x->type == List::Type::tuple)) {
    for (size_t i = 0; i < std::min(x->items.size(), y->items.size()); ++i) {
      if (equal(budget, x->items[i], y->items[i])) continue;
      return compare(budget, x->items[i], y->items[i], symbol);
    }
    return x->items.size() < y->items.size() ? -1 : x->items.size() > y->items.size() ? 1 : 0;
  }
  throw Failure(fmt::format("'{}' not supported between instances of '{}' and '{}'", symbol,
                            type_name(a), type_name(b)));
}

bool contains(Engine& engine, const Value& container, const Value& item) {
  Budget& budget = engine.budget;
  if (const Text* text = container.text()) {
    if (item.text() == nullptr) {
      throw Failure(
          fmt::format("'in <string>' requires string as left operand, not {}", type_name(item)));
    }
    budget.step(static_cast<int64_t>(text->bytes.size() / 16));
    return text->bytes.find(item.text()->bytes) != std::string::npos;
  }
  if (const Dict* dict = container.dict()) {
    if (item.dict() != nullptr ||
        (item.list() != nullptr && item.list()->type == List::Type::list)) {
      throw Failure(fmt::format("unhashable type: '{}'", type_name(item)));
    }
    return dict->find(budget, item) != nullptr;
  }
  if (List* list = container.list()) {
    while (list->next < list->items.size() && list->type == List::Type::generator) {
      if (equal(budget, list->items[list->next++], item)) return true;
    }
    if (list->type == List::Type::generator) return false;
    return std::any_of(list->items.begin(), list->items.end(),
                       [&](const Value& own) { return equal(budget, own, item); });
  }
  if (container.is_undefined()) return false;
  throw Failure(fmt::format("argument of type '{}' is not iterable", type_name(container)));
}

bool is_iterable(const Value& value) {
  return value.is_undefined() || value.text() != nullptr || value.list() != nullptr ||
         value.dict() != nullptr;
}

std::vector<Value> items_of(Engine& engine, const Value& value) {
  Budget& budget = engine.budget;
  std::vector<Value> items;
  if (const Text* text = value.text()) {
    budget.bytes(text->bytes.size() * sizeof(Value));
    for (const std::string_view character : characters(text->bytes)) {
      items.emplace_back(std::string(character), text->safe);
    }
  } else if (const Dict* dict = value.dict()) {
    for (const auto& item : dict->items) items.push_back(item.first);
  } else if (List* list = value.list()) {
    items.assign(list->items.begin() + static_cast<std::ptrdiff_t>(list->next), list->items.end());
    if (list->type == List::Type::generator) list->next = list->items.size();
  } else if (!value.is_undefined()) {
    throw Failure(fmt::format("'{}' object is not iterable", type_name(value)));
  }
  budget.bytes(items.size() * sizeof(Value));
  return items;
}

int64_t length_of(const Value& value) {
  if (value.is_undefined()) return 0;
  if (const Text* text = value.text()) return character_count(text->bytes);
  if (const Dict* dict = value.dict()) return static_cast<int64_t>(dict->items.size());
  if (const List* list = value.list(); list != nullptr && list->type != List::Type::generator) {
    return static_cast<int64_t>(list->items.size());
  }
  throw Failure(fmt::format("object of type '{}' has no len()", type_name(value)));
}

namespace {

// Positions that value[start:stop:step] takes, of `size`.
std::vector<int64_t> slice_positions(int64_t size, const Value& start, const Value& stop,
                                     const Value& step) {
  const auto number = [](const Value& value) -> std::optional<int64_t> {
    if (value.is_none()) return {};
    value.must_be_defined();
    const auto result = whole(value);
    if (!result) {
      throw Failure("slice indices must be integers or None or have an __index__ method");
    }
    return result;
  };
  const int64_t by = number(step).value_or(1);
  if (by == 0) throw Failure("slice step cannot be zero");
  const int64_t low = by < 0 ? -1 : 0, high = by < 0 ? size - 1 : size;
  const auto bound = [&](const Value& value, int64_t fallback) {
    const std::optional<int64_t> given = number(value);
    if (!given) return fallback;
    const int64_t at = *given < 0 ? (*given < -size ? -1 - size : *given) + size : *given;
    return std::clamp(at, low, high);
  };
  const int64_t first = bound(start, by < 0 ? high : low);
  const int64_t last = bound(stop, by < 0 ? low : high);
  std::vector<int64_t> positions;
  for (int64_t at = first; by > 0 ? at < last : at > last;) {
    positions.push_back(at);
    if (by > 0 ? at >= last - by : at <= last - by) break;  // without overflow
    at += by;
  }
  return positions;
}

}  // namespace

Value slice_of(Budget& budget, const Value& value, const Value& start, const Value& stop,
               const Value& step) {
  value.must_be_defined();
  if (const Text* text = value.text()) {
    budget.bytes(text->bytes.size());
    const std::vector<std::string_view> all = characters(text->bytes);
    std::string out;
    for (const int64_t at : slice_positions(static_cast<int64_t>(all.size()), start, stop, step)) {
      out += all[static_cast<size_t>(at)];
    }
    return make_text(budget, std::move(out), text->safe);
  }
  const List* list = value.list();
  if (list == nullptr || !is_sequence_type(list->type))
    return Value::undefined(
        fmt::format("{} object has no element that a slice names", type_name(value)));
  std::vector<Value> items;
  const auto size = static_cast<int64_t>(list->items.size());
  budget.step(size / 16);
  for (const int64_t at : slice_positions(size, start, stop, step)) {
    items.push_back(list->items[static_cast<size_t>(at)]);
  }
  return make_list(budget, std::move(items), list->type);
}

}  // namespace pronghorn::jinja
