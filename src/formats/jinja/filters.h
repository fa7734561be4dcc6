// Filters in groups, and what their functions share.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/jinja/engine.h"

namespace pronghorn::jinja {

// Arguments by parameter; null where nothing was given.
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

std::span<const Filter> text_filters();
std::span<const Filter> number_filters();
std::span<const Filter> list_filters();
std::span<const FreeFilter> free_text_filters();
std::span<const FreeFilter> free_list_filters();

bool flag(const Value* value);
// Throws Failure for what is no whole number.
int64_t number(const Value* value, int64_t fallback);
// The value as text, with its mark if it has one.
Value soft_text(Engine& engine, const Value& value);
Value like(Engine& engine, const Value& soft, std::string text);
// A method of the value as text.
Value through(Engine& engine, const Value& value, std::string_view method, Arguments arguments);
Value generator(Engine& engine, std::vector<Value> items);
Value lower_case(Engine& engine, const Value& value);

}  // namespace pronghorn::jinja
