// Whether a JSON value is valid by a schema, keyword by keyword.
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>

#include "base/error.h"
#include "formats/utf8.h"

namespace pronghorn::testing_support {

using Document = nlohmann::ordered_json;

inline int64_t characters_of(const std::string& text) {
  int64_t count = 0;
  for (const char c : text) count += (static_cast<uint8_t>(c) & 0xC0) != 0x80 ? 1 : 0;
  return count;
}

inline bool is_of_type(const Document& value, const std::string& type) {
  if (type == "null") return value.is_null();
  if (type == "boolean") return value.is_boolean();
  if (type == "string") return value.is_string();
  if (type == "array") return value.is_array();
  if (type == "object") return value.is_object();
  if (type == "number") return value.is_number();
  return value.is_number() && std::floor(value.get<double>()) == value.get<double>();
}

inline bool is_valid(const Document& root, const Document& schema, const Document& value);

inline bool has_valid_members(const Document& root, const Document& schema, const Document& value) {
  const Document properties = schema.value("properties", Document::object());
  for (const auto& [name, member] : value.items()) {
    if (properties.contains(name)) {
      if (!is_valid(root, properties[name], member)) return false;
    } else if (schema.contains("additionalProperties")) {
      if (!is_valid(root, schema["additionalProperties"], member)) return false;
    }
  }
  for (const Document& name : schema.value("required", Document::array())) {
    if (!value.contains(name.get<std::string>())) return false;
  }
  return true;
}

inline bool has_valid_items(const Document& root, const Document& schema, const Document& value) {
  const Document first = schema.value("prefixItems", Document::array());
  for (size_t i = 0; i < value.size(); ++i) {
    if (i < first.size()) {
      if (!is_valid(root, first[i], value[i])) return false;
    } else if (schema.contains("items") && !is_valid(root, schema["items"], value[i])) {
      return false;
    }
  }
  const auto count = static_cast<int64_t>(value.size());
  return count >= schema.value("minItems", int64_t{0}) &&
         count <= schema.value("maxItems", int64_t{1} << 40);
}

inline bool has_valid_text(const Document& schema, const std::string& text) {
  if (schema.contains("pattern")) {
    const std::regex pattern(schema["pattern"].get<std::string>(), std::regex::ECMAScript);
    if (!std::regex_search(text, pattern)) return false;
  }
  const int64_t length = characters_of(text);
  return length >= schema.value("minLength", int64_t{0}) &&
         length <= schema.value("maxLength", int64_t{1} << 40);
}

inline bool is_within(const Document& schema, double value) {
  return value >= schema.value("minimum", -INFINITY) &&
         value <= schema.value("maximum", INFINITY) &&
         value > schema.value("exclusiveMinimum", -INFINITY) &&
         value < schema.value("exclusiveMaximum", INFINITY);
}

inline bool is_valid(const Document& root, const Document& schema, const Document& value) {
  if (schema.is_boolean()) return schema.get<bool>();
  const auto valid_by = [&](const Document& other) { return is_valid(root, other, value); };
  if (schema.contains("$ref")) {
    const auto name = schema["$ref"].get<std::string>();
    if (!valid_by(root.at(Document::json_pointer(name.substr(1))))) return false;
  }
  if (schema.contains("type")) {
    const Document types =
        schema["type"].is_array() ? schema["type"] : Document::array({schema["type"]});
    if (std::ranges::none_of(types, [&](const Document& t) { return is_of_type(value, t); })) {
      return false;
    }
  }
  if (schema.contains("const") && schema["const"] != value) return false;
  if (schema.contains("enum") && std::ranges::find(schema["enum"], value) == schema["enum"].end()) {
    return false;
  }
  if (schema.contains("anyOf") && std::ranges::none_of(schema["anyOf"], valid_by)) return false;
  if (schema.contains("oneOf") && std::ranges::count_if(schema["oneOf"], valid_by) != 1) {
    return false;
  }
  if (schema.contains("allOf") && !std::ranges::all_of(schema["allOf"], valid_by)) return false;
  if (value.is_object()) return has_valid_members(root, schema, value);
  if (value.is_array()) return has_valid_items(root, schema, value);
  if (value.is_string()) return has_valid_text(schema, value.get<std::string>());
  return !value.is_number() || is_within(schema, value.get<double>());
}

}  // namespace pronghorn::testing_support
