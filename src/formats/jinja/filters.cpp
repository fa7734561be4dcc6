// Filters: {{ value | name(arguments) }}.
#include "formats/jinja/filters.h"

#include <algorithm>

#include "formats/jinja/text.h"

namespace pronghorn::jinja {
namespace {

template <typename Row>
const Row* find_in(std::span<const Row> table, std::string_view name) {
  const auto found =
      std::find_if(table.begin(), table.end(), [&](const Row& row) { return row.name == name; });
  return found == table.end() ? nullptr : &*found;
}

const Filter* find_filter(std::string_view name) {
  for (const auto& table : {text_filters(), number_filters(), list_filters()}) {
    if (const Filter* filter = find_in(table, name)) return filter;
  }
  return nullptr;
}

const FreeFilter* find_free_filter(std::string_view name) {
  for (const auto& table : {free_text_filters(), free_list_filters()}) {
    if (const FreeFilter* filter = find_in(table, name)) return filter;
  }
  return nullptr;
}

}  // namespace

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

Value soft_text(Engine& engine, const Value& value) {
  return value.text() != nullptr ? value : Value(to_text(engine.budget, value));
}

Value like(Engine& engine, const Value& soft, std::string text) {
  return make_text(engine.budget, std::move(text), soft.text()->safe);
}

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

bool has_filter(std::string_view name) {
  return find_filter(name) != nullptr || find_free_filter(name) != nullptr;
}

Value call_filter(Engine& engine, std::string_view name, const Value& value, Arguments& arguments) {
  const Engine::Level level(engine);
  engine.budget.step();
  if (const Filter* filter = find_filter(name)) {
    return filter->run(
        engine, value,
        bind_arguments(filter->name, filter->parameters, filter->required, arguments));
  }
  if (const FreeFilter* filter = find_free_filter(name)) {
    return filter->run(engine, value, arguments);
  }
  throw Failure(fmt::format("No filter named {} found.", repr(name)));
}

}  // namespace pronghorn::jinja
