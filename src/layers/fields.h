// The settings of a layer: a struct whose
//
//   void fields(ConfigFields& f, const LayerContext& context);
//
// names each of them once. From that one list a configuration is read from JSON, checked, written
// back with every default spelled out, and documented (`pronghorn list MIXER`, docs/architectures).
#pragma once

#include <fmt/format.h>

#include <concepts>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "formats/json.h"

namespace pronghorn {

struct LayerContext;

// A row of a table of settings.
struct FieldDescription {
  std::string name;      // "heads", "rope.theta"
  std::string fallback;  // "required", "4", "hidden_size / heads"
  std::string meaning;
};

// "| key | default | meaning |" and so on, in Markdown.
std::string field_table(std::span<const FieldDescription> fields);

// What a setting is without a value of its own, and how that is told.
struct RequiredTag {};
inline constexpr RequiredTag kRequired;

template <typename T>
struct Default {
  std::optional<T> value;  // none: required
  std::string text;

  Default(RequiredTag) : text("required") {}
  template <typename U>
  requires std::convertible_to<U, T> Default(U plain)
      : value(static_cast<T>(plain)), text(plain_text(*value)) {}
  Default(T computed, std::string rule) : value(std::move(computed)), text(std::move(rule)) {}

 private:
  static std::string plain_text(const std::string& x) { return fmt::format("`\"{}\"`", x); }
  template <typename Number>
  static std::string plain_text(Number x) {
    return fmt::format("{}", x);
  }
};

class ConfigFields {
 public:
  // Reads the key "type", too.
  explicit ConfigFields(ConfigReader reader);

  const std::string& type() const { return type_; }
  bool has(std::string_view name) const { return reader_.has(name); }

  // Each reads one setting into `value`. They throw what ConfigReader's getters of these names do.
  void integer(std::string_view name, int64_t& value, const Default<int64_t>& fallback,
               int64_t minimum, int64_t maximum, std::string_view meaning);
  void number(std::string_view name, double& value, const Default<double>& fallback, double minimum,
              double maximum, std::string_view meaning);
  void boolean(std::string_view name, bool& value, const Default<bool>& fallback,
               std::string_view meaning);
  void one_of(std::string_view name, std::string& value,
              std::initializer_list<std::string_view> choices, const Default<std::string>& fallback,
              std::string_view meaning);
  // A number that only decides the default of another setting: it is not written.
  void hint(std::string_view name, double& value, const Default<double>& fallback, double minimum,
            double maximum, std::string_view meaning);
  // Whatever JSON there is; the caller checks it.
  void json(std::string_view name, nlohmann::json& value, const nlohmann::json& fallback,
            std::string_view fallback_text, std::string_view meaning);
  // An object that may be missing, which is written as null; returns whether it is there.
  bool object(std::string_view name, const std::function<void(ConfigFields&)>& fields,
              std::string_view meaning);

  // Throws Error naming the setting and its place unless `condition` holds.
  template <typename... Args>
  void check(bool condition, std::string_view name, fmt::format_string<Args...> format,
             Args&&... args) const {
    if (!condition) require(false, reader_.path(name), format, std::forward<Args>(args)...);
  }

  // All settings with their defaults spelled out. Throws Error for keys that no field has read.
  nlohmann::json finish() const;
  const std::vector<FieldDescription>& descriptions() const { return descriptions_; }

 private:
  struct Nested {};
  ConfigFields(ConfigReader reader, Nested);
  void describe(std::string_view name, std::string_view fallback, std::string_view meaning);

  ConfigReader reader_;
  std::string type_;
  nlohmann::json written_ = nlohmann::json::object();
  std::vector<FieldDescription> descriptions_;
};

constexpr int64_t kUnbounded = std::numeric_limits<int64_t>::max();

}  // namespace pronghorn
