#include "layers/fields.h"

namespace pronghorn {

std::string field_table(std::span<const FieldDescription> fields) {
  std::string table = "| key | default | meaning |\n|---|---|---|\n";
  for (const FieldDescription& field : fields) {
    table += fmt::format("| `{}` | {} | {} |\n", field.name, field.fallback, field.meaning);
  }
  return table;
}

ConfigFields::ConfigFields(ConfigReader reader, Nested) : reader_(std::move(reader)) {}

ConfigFields::ConfigFields(ConfigReader reader) : ConfigFields(std::move(reader), Nested()) {
  type_ = reader_.string("type");
  written_["type"] = type_;
}

void ConfigFields::describe(std::string_view name, std::string_view fallback,
                            std::string_view meaning) {
  descriptions_.push_back({std::string(name), std::string(fallback), std::string(meaning)});
}

void ConfigFields::integer(std::string_view name, int64_t& value, const Default<int64_t>& fallback,
                           int64_t minimum, int64_t maximum, std::string_view meaning) {
  value = reader_.integer(name, fallback.value, minimum, maximum);
  written_[std::string(name)] = value;
  describe(name, fallback.text, meaning);
}

void ConfigFields::number(std::string_view name, double& value, const Default<double>& fallback,
                          double minimum, double maximum, std::string_view meaning) {
  hint(name, value, fallback, minimum, maximum, meaning);
  written_[std::string(name)] = value;
}

void ConfigFields::boolean(std::string_view name, bool& value, const Default<bool>& fallback,
                           std::string_view meaning) {
  value = reader_.boolean(name, fallback.value);
  written_[std::string(name)] = value;
  describe(name, fallback.text, meaning);
}

void ConfigFields::one_of(std::string_view name, std::string& value,
                          std::initializer_list<std::string_view> choices,
                          const Default<std::string>& fallback, std::string_view meaning) {
  value = reader_.one_of(name, choices, fallback.value);
  written_[std::string(name)] = value;
  describe(name, fallback.text, meaning);
}

void ConfigFields::hint(std::string_view name, double& value, const Default<double>& fallback,
                        double minimum, double maximum, std::string_view meaning) {
  value = reader_.number(name, fallback.value, minimum, maximum);
  describe(name, fallback.text, meaning);
}

void ConfigFields::json(std::string_view name, nlohmann::json& value,
                        const nlohmann::json& fallback, std::string_view fallback_text,
                        std::string_view meaning) {
  const nlohmann::json& found = reader_.raw(name);
  value = found.is_null() ? fallback : found;
  written_[std::string(name)] = value;
  describe(name, fallback_text, meaning);
}

bool ConfigFields::object(std::string_view name, const std::function<void(ConfigFields&)>& fields,
                          std::string_view meaning) {
  describe(name, "none", meaning);
  if (!reader_.has(name)) {
    reader_.ignore(name);
    written_[std::string(name)] = nullptr;
    return false;
  }
  ConfigFields inner(reader_.object(name), Nested());
  fields(inner);
  written_[std::string(name)] = inner.finish();
  for (const FieldDescription& field : inner.descriptions_) {
    describe(fmt::format("{}.{}", name, field.name), field.fallback, field.meaning);
  }
  return true;
}

nlohmann::json ConfigFields::finish() const {
  reader_.finish();
  return written_;
}

}  // namespace pronghorn
