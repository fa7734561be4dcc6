// Filters of lists, dictionaries and their items.
#include <algorithm>
#include <charconv>

#include "formats/jinja/filters.h"
#include "formats/jinja/text.h"

namespace pronghorn::jinja {
namespace {

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

Value sum(Engine& engine, const Value& value, Given given) {
  const AttributeGetter getter(given[0], nullptr, false);
  Value total = given[1] == nullptr ? Value(int64_t{0}) : *given[1];
  for (const Value& item : items_of(engine, value)) {
    total = add(engine, total, getter(engine, item));
  }
  return total;
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

constexpr Filter kFilters[] = {
    {"attr", "name", 1, attribute},
    {"batch", "linecount fill_with", 1, batch},
    {"count", "", 0, length},
    {"d", "default_value boolean", 0, or_default},
    {"default", "default_value boolean", 0, or_default},
    {"dictsort", "case_sensitive by reverse", 0, dict_sort},
    {"first", "", 0, first},
    {"groupby", "attribute default case_sensitive", 1, group_by},
    {"items", "", 0, items},
    {"join", "d attribute", 0, join},
    {"last", "", 0, last},
    {"length", "", 0, length},
    {"list", "", 0, list},
    {"max", "case_sensitive attribute", 0, extreme<true>},
    {"min", "case_sensitive attribute", 0, extreme<false>},
    {"reverse", "", 0, reverse},
    {"slice", "slices fill_with", 1, slices},
    {"sort", "reverse case_sensitive attribute", 0, sort},
    {"sum", "attribute start", 0, sum},
    {"unique", "case_sensitive attribute", 0, unique},
};

constexpr FreeFilter kFreeFilters[] = {
    {"map", map},
    {"reject", select<false, false>},
    {"rejectattr", select<false, true>},
    {"select", select<true, false>},
    {"selectattr", select<true, true>},
};

}  // namespace

std::span<const Filter> list_filters() { return kFilters; }
std::span<const FreeFilter> free_list_filters() { return kFreeFilters; }

}  // namespace pronghorn::jinja
