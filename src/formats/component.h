// Reading the components of a tokenizer.json: objects with a "type", some of which are lists.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/regex.h"

namespace pronghorn {

// The value under `key`, or null if the value is no object or has no such key.
const nlohmann::json& member_or_null(const nlohmann::json& object, std::string_view key);

// One object of a tokenizer.json. Getters throw Error naming the file, the key and what it must be;
// one with a fallback gives that where the key is absent or null.
class Component {
 public:
  // where: file and place. Throws Error unless `object` is one.
  Component(const nlohmann::json& object, std::string where);

  const nlohmann::json& member(std::string_view key) const { return member_or_null(object_, key); }
  std::string text(std::string_view key) const;
  std::string text(std::string_view key, std::string_view fallback) const;
  bool flag(std::string_view key, bool fallback) const;
  uint64_t count(std::string_view key, uint64_t fallback) const;
  // One character: its bytes.
  std::string character(std::string_view key, std::optional<std::string_view> fallback = {}) const;
  const nlohmann::json& list(std::string_view key) const;
  // "pattern": {"Regex": "..."} or {"String": "..."}.
  Regex pattern() const;

  const std::string& type() const { return type_; }
  const std::string& where() const { return where_; }
  [[noreturn]] void refuse(std::string_view problem) const;
  // Throws Error: the type is not one of those.
  [[noreturn]] void refuse_type() const;

 private:
  const nlohmann::json& object_;
  std::string where_, type_;
};

// The steps of a component: those of a "Sequence" (nested ones too) in order, or itself, or none if
// it is null. list_key: under which a Sequence has its steps. Throws Error.
std::vector<Component> steps_of(const nlohmann::json& component, std::string_view list_key,
                                const std::string& where);

}  // namespace pronghorn
