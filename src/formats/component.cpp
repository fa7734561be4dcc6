#include "formats/component.h"

#include "base/error.h"
#include "base/quote.h"
#include "formats/utf8.h"

namespace pronghorn {

using nlohmann::json;

const json& member_or_null(const json& object, std::string_view key) {
  static const json null;
  if (!object.is_object()) return null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

Component::Component(const json& object, std::string where)
    : object_(object), where_(std::move(where)) {
  require(object.is_object(), where_, "must be an object");
  const json& type = member("type");
  if (type.is_string()) type_ = type.get<std::string>();
}

void Component::refuse(std::string_view problem) const { throw Error(where_, problem); }

void Component::refuse_type() const {
  if (type_.empty()) refuse("has no type");
  refuse(fmt::format("type {} is not supported", quote(type_)));
}

std::string Component::text(std::string_view key) const {
  const json& value = member(key);
  require(value.is_string(), where_, "'{}' must be a string", key);
  return value.get<std::string>();
}

std::string Component::text(std::string_view key, std::string_view fallback) const {
  return member(key).is_null() ? std::string(fallback) : text(key);
}

bool Component::flag(std::string_view key, bool fallback) const {
  const json& value = member(key);
  if (value.is_null()) return fallback;
  require(value.is_boolean(), where_, "'{}' must be true or false", key);
  return value.get<bool>();
}

uint64_t Component::count(std::string_view key, uint64_t fallback) const {
  const json& value = member(key);
  if (value.is_null()) return fallback;
  require(value.is_number_unsigned(), where_, "'{}' must be a whole number", key);
  return value.get<uint64_t>();
}

std::string Component::character(std::string_view key,
                                 std::optional<std::string_view> fallback) const {
  std::string value = fallback ? text(key, *fallback) : text(key);
  require(!value.empty() && utf8_character(value) == value.size(), where_,
          "'{}' must be one character", key);
  return value;
}

const json& Component::list(std::string_view key) const {
  const json& value = member(key);
  require(value.is_array(), where_, "'{}' must be an array", key);
  return value;
}

Regex Component::pattern() const {
  const json& pattern = member("pattern");
  if (pattern.is_string()) return Regex(pattern.get<std::string>(), true, where_);
  const json& plain = member_or_null(pattern, "String");
  const json& regex = member_or_null(pattern, "Regex");
  require(plain.is_string() || regex.is_string(), where_,
          "'pattern' must be {{\"Regex\": text}} or {{\"String\": text}}");
  return plain.is_string() ? Regex(plain.get<std::string>(), true, where_)
                           : Regex(regex.get<std::string>(), false, where_);
}

std::vector<Component> steps_of(const json& component, std::string_view list_key,
                                const std::string& where) {
  std::vector<Component> steps;
  if (component.is_null()) return steps;
  Component one(component, where);
  if (one.type() != "Sequence") return {std::move(one)};
  for (const json& step : one.list(list_key)) {
    for (Component& inner : steps_of(step, list_key, where)) steps.push_back(std::move(inner));
  }
  return steps;
}

}  // namespace pronghorn
