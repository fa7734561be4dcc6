// Tests: {{ value is name(arguments) }}.
#include <algorithm>

#include "formats/jinja/engine.h"
#include "formats/jinja/text.h"

namespace pronghorn::jinja {
namespace {

struct Test {
  std::string_view name;
  size_t arguments;
  bool (*run)(Engine&, const Value& value, const Value* other);
};

int64_t remainder_of(Engine& engine, const Value& value, const Value& by) {
  const Value rest = arithmetic(engine, "%", value, by);
  return whole(rest).value_or(rest.number() != nullptr && *rest.number() == 0 ? 0 : 2);
}

bool is_defined(Engine&, const Value& value, const Value*) { return !value.is_undefined(); }
bool is_undefined(Engine&, const Value& value, const Value*) { return value.is_undefined(); }
bool is_none(Engine&, const Value& value, const Value*) { return value.is_none(); }
bool is_boolean(Engine&, const Value& value, const Value*) { return value.boolean() != nullptr; }
bool is_integer(Engine&, const Value& value, const Value*) { return value.integer() != nullptr; }
bool is_float(Engine&, const Value& value, const Value*) { return value.number() != nullptr; }
bool is_number(Engine&, const Value& value, const Value*) { return real(value).has_value(); }
bool is_string(Engine&, const Value& value, const Value*) { return value.text() != nullptr; }
bool is_mapping(Engine&, const Value& value, const Value*) { return value.dict() != nullptr; }
bool can_iterate(Engine&, const Value& value, const Value*) { return is_iterable(value); }

template <bool wanted>
bool is_exactly(Engine&, const Value& value, const Value*) {
  return value.boolean() != nullptr && *value.boolean() == wanted;
}

// What has a length and places.
bool is_sequence(Engine&, const Value& value, const Value*) {
  const List* list = value.list();
  return value.is_undefined() || value.text() != nullptr || value.dict() != nullptr ||
         (list != nullptr && list->type <= List::Type::range);
}

bool is_callable(Engine&, const Value& value, const Value*) {
  return value.is_undefined() || (value.object() != nullptr && value.object()->callable());
}

bool is_escaped(Engine&, const Value& value, const Value*) {
  return value.text() != nullptr && value.text()->safe;
}

template <int rest>
bool leaves(Engine& engine, const Value& value, const Value*) {
  return remainder_of(engine, value, int64_t{2}) == rest;
}

bool divides(Engine& engine, const Value& value, const Value* other) {
  return remainder_of(engine, value, *other) == 0;
}

template <bool upper>
bool has_case(Engine& engine, const Value& value, const Value*) {
  return is_cased(to_text(engine.budget, value), upper);
}

bool is_filter(Engine& engine, const Value& value, const Value*) {
  return has_filter(to_text(engine.budget, value));
}
bool is_test(Engine& engine, const Value& value, const Value*) {
  return has_test(to_text(engine.budget, value));
}

bool is_same(Engine&, const Value& value, const Value* other) { return value.same_as(*other); }
bool is_in(Engine& engine, const Value& value, const Value* other) {
  return contains(engine, *other, value);
}
bool is_equal(Engine& engine, const Value& value, const Value* other) {
  return equal(engine.budget, value, *other);
}
bool is_unequal(Engine& engine, const Value& value, const Value* other) {
  return !equal(engine.budget, value, *other);
}
bool is_less(Engine& engine, const Value& value, const Value* other) {
  return compare(engine.budget, value, *other, "<") < 0;
}
bool is_at_most(Engine& engine, const Value& value, const Value* other) {
  return compare(engine.budget, value, *other, "<=") <= 0;
}
bool is_greater(Engine& engine, const Value& value, const Value* other) {
  return compare(engine.budget, value, *other, ">") > 0;
}
bool is_at_least(Engine& engine, const Value& value, const Value* other) {
  return compare(engine.budget, value, *other, ">=") >= 0;
}

constexpr Test kTests[] = {
    {"!=", 1, is_unequal},
    {"<", 1, is_less},
    {"<=", 1, is_at_most},
    {"==", 1, is_equal},
    {">", 1, is_greater},
    {">=", 1, is_at_least},
    {"boolean", 0, is_boolean},
    {"callable", 0, is_callable},
    {"defined", 0, is_defined},
    {"divisibleby", 1, divides},
    {"eq", 1, is_equal},
    {"equalto", 1, is_equal},
    {"escaped", 0, is_escaped},
    {"even", 0, leaves<0>},
    {"false", 0, is_exactly<false>},
    {"filter", 0, is_filter},
    {"float", 0, is_float},
    {"ge", 1, is_at_least},
    {"greaterthan", 1, is_greater},
    {"gt", 1, is_greater},
    {"in", 1, is_in},
    {"integer", 0, is_integer},
    {"iterable", 0, can_iterate},
    {"le", 1, is_at_most},
    {"lessthan", 1, is_less},
    {"lower", 0, has_case<false>},
    {"lt", 1, is_less},
    {"mapping", 0, is_mapping},
    {"ne", 1, is_unequal},
    {"none", 0, is_none},
    {"number", 0, is_number},
    {"odd", 0, leaves<1>},
    {"sameas", 1, is_same},
    {"sequence", 0, is_sequence},
    {"string", 0, is_string},
    {"test", 0, is_test},
    {"true", 0, is_exactly<true>},
    {"undefined", 0, is_undefined},
    {"upper", 0, has_case<true>},
};

const Test* find_test(std::string_view name) {
  const auto* found = std::find_if(std::begin(kTests), std::end(kTests),
                                   [&](const Test& test) { return test.name == name; });
  return found == std::end(kTests) ? nullptr : found;
}

}  // namespace

bool has_test(std::string_view name) { return find_test(name) != nullptr; }

bool call_test(Engine& engine, std::string_view name, const Value& value, Arguments& arguments) {
  engine.budget.step();
  const Test* test = find_test(name);
  if (test == nullptr) throw Failure(fmt::format("No test named {} found.", repr(name)));
  const auto given =
      bind_arguments(name, test->arguments == 0 ? "" : "other", test->arguments, arguments);
  return test->run(engine, value, test->arguments == 0 ? nullptr : given[0]);
}

}  // namespace pronghorn::jinja
