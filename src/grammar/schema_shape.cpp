#include "grammar/schema_shape.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/quote.h"
#include "formats/json.h"

namespace pronghorn {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kDeepest = 64;
constexpr int64_t kMostCount = 1'000'000;  // of a least length; more than any text has
constexpr size_t kMostChoices = 256;
constexpr size_t kMostOneOf = 64;       // each is compared with each
constexpr int64_t kMostSchemas = 4096;  // that hold together

// Those that a pattern of texts can say; of dates only such that exist.
constexpr const char* kDate =
    "(?:(?:[1-9]\\d{3}|0[1-9]\\d\\d|00[1-9]\\d|000[1-9])-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3["
    "01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8]))"
    "|(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)";
constexpr const char* kTime =
    "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,6})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)";
constexpr const char* kUuid = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
constexpr const char* kIpv4 =
    "(?:(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)\\.){3}(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";

std::optional<std::string> pattern_of_format(const std::string& format) {
  const auto whole = [](const std::string& pattern) { return "^" + pattern + "$"; };
  if (format == "date") return whole(kDate);
  if (format == "time") return whole(kTime);
  if (format == "date-time") return whole(std::string(kDate) + "T" + kTime);
  if (format == "uuid") return whole(kUuid);
  if (format == "ipv4") return whole(kIpv4);
  return {};
}

uint8_t type_named(const std::string& name) {
  if (name == "null") return SchemaShape::kNull;
  if (name == "boolean") return SchemaShape::kBoolean;
  if (name == "integer") return SchemaShape::kInteger;
  if (name == "number") return SchemaShape::kInteger | SchemaShape::kFraction;
  if (name == "string") return SchemaShape::kString;
  if (name == "array") return SchemaShape::kArray;
  if (name == "object") return SchemaShape::kObject;
  return 0;
}

// Says something for people, or for other tools, and nothing of the value.
bool is_annotation(const std::string& key) {
  static const std::set<std::string> known = {"title",           "description",  "default",
                                              "examples",        "example",      "deprecated",
                                              "readOnly",        "writeOnly",    "$comment",
                                              "$schema",         "$id",          "$defs",
                                              "definitions",     "$anchor",      "contentMediaType",
                                              "contentEncoding", "discriminator"};
  return known.contains(key) || key.starts_with("x-");
}

class Gatherer {
 public:
  // checks_one_of: whether the schemas of a oneOf must exclude one another; it is left out where
  // that is being found out.
  Gatherer(SchemaDocument& document, SchemaShape& shape, bool checks_one_of)
      : document_(document), shape_(shape), checks_one_of_(checks_one_of) {}

  void gather(const SchemaAt& at, int depth) {
    if (depth > kDeepest) fail(at, "refers to itself without a value between, or is too deep");
    document_.spend(1);
    if (++shape_.schemas > kMostSchemas) {
      fail(at, fmt::format("is one of more than {} schemas that hold together", kMostSchemas));
    }
    const Json& schema = *at.schema;
    if (schema.is_boolean()) {
      if (!schema.get<bool>()) shape_.types = 0;
      return;
    }
    if (!schema.is_object()) fail(at, "must be an object, true or false");
    document_.spend(std::ssize(schema));
    for (const auto& [key, value] : schema.items()) keyword(at, key, value, depth);
    gather_items(at);
    gather_members(at);
  }

 private:
  [[noreturn]] static void fail(const SchemaAt& at, const std::string& problem,
                                std::string_view remedy = {}) {
    throw UsageError("schema", fmt::format("{} {}", printable(at.path, 200), problem), remedy);
  }
  static SchemaAt below(const SchemaAt& at, const Json& schema, const std::string& key) {
    return {&schema, at.path + "/" + key};
  }

  void keyword(const SchemaAt& at, const std::string& key, const Json& value, int depth) {
    if (is_annotation(key) || members_keyword(key) || items_keyword(key)) return;
    if (key == "type") return types(at, value);
    if (key == "enum" || key == "const") return values(at, key, value);
    if (number_keyword(at, key, value) || string_keyword(at, key, value)) return;
    if (key == "$ref") return gather(resolve(at, value), depth + 1);
    if (key == "allOf") {
      for (const SchemaAt& part : list(at, key, value)) gather(part, depth + 1);
      return;
    }
    if (key == "anyOf" || key == "oneOf") {
      std::vector<SchemaAt> parts = list(at, key, value);
      if (key == "oneOf" && checks_one_of_) require_disjoint(at, value, parts);
      shape_.choices.push_back(std::move(parts));
      return;
    }
    const bool harmless = (key == "uniqueItems" && value == false) ||
                          (key == "unevaluatedProperties" && value == true);
    if (harmless) return;
    fail(at, fmt::format("has the keyword {}, which is not supported", quote(key)),
         "take it out, or check it when the text is there");
  }

  static bool items_keyword(const std::string& key) {
    return key == "items" || key == "prefixItems" || key == "minItems" || key == "maxItems";
  }
  static bool members_keyword(const std::string& key) {
    return key == "properties" || key == "required" || key == "additionalProperties";
  }

  void types(const SchemaAt& at, const Json& value) {
    uint8_t types = 0;
    const Json one = value.is_array() ? value : Json::array({value});
    for (const Json& name : one) {
      const uint8_t type = name.is_string() ? type_named(name.get<std::string>()) : 0;
      if (type == 0) fail(at, "has an unknown type " + shown_json(nlohmann::json(name)));
      types |= type;
    }
    shape_.types &= types;
    shape_.mentioned |= types;
  }

  void values(const SchemaAt& at, const std::string& key, const Json& value) {
    if (key == "enum" && !value.is_array()) fail(at, "has an enum that is no list");
    std::vector<Json> own;
    if (key == "const") own.push_back(value);
    if (key == "enum") own.assign(value.begin(), value.end());
    if (shape_.values) {
      std::erase_if(own, [&](const Json& one) {
        return std::ranges::find(*shape_.values, one) == shape_.values->end();
      });
    }
    shape_.values = std::move(own);
  }

  int64_t count(const SchemaAt& at, const std::string& key, const Json& value) {
    const double number = value.is_number() ? value.get<double>() : -1;
    if (!(number >= 0) || std::floor(number) != number) {
      fail(at, fmt::format("has a {} that is no whole number from 0 on", key));
    }
    return static_cast<int64_t>(std::min(number, 1e12));
  }

  void at_least(const SchemaAt& at, const std::string& key, const Json& value, int64_t& least) {
    least = std::max(least, count(at, key, value));
    if (least > kMostCount) {
      throw UsageError("schema", fmt::format("{} asks for {} of at least {}, more than {}", at.path,
                                             key, least, kMostCount));
    }
  }
  void at_most(const SchemaAt& at, const std::string& key, const Json& value, int64_t& most) {
    const int64_t own = count(at, key, value);
    most = most < 0 ? own : std::min(most, own);
  }

  bool number_keyword(const SchemaAt& at, const std::string& key, const Json& value) {
    const bool least = key == "minimum" || key == "exclusiveMinimum";
    const bool most = key == "maximum" || key == "exclusiveMaximum";
    if (!least && !most) return false;
    if (!value.is_number()) fail(at, fmt::format("has a {} that is no number", key));
    const auto bound = value.get<double>();
    const bool out = key.starts_with("exclusive");
    NumberBounds& bounds = shape_.bounds;
    if (least && (!bounds.least || bound > *bounds.least)) {
      bounds.least = bound;
      bounds.above_least = out;
    } else if (least && bound == *bounds.least) {
      bounds.above_least |= out;
    }
    if (most && (!bounds.most || bound < *bounds.most)) {
      bounds.most = bound;
      bounds.below_most = out;
    } else if (most && bound == *bounds.most) {
      bounds.below_most |= out;
    }
    shape_.mentioned |= SchemaShape::kInteger | SchemaShape::kFraction;
    return true;
  }

  bool string_keyword(const SchemaAt& at, const std::string& key, const Json& value) {
    if (key == "minLength") {
      at_least(at, key, value, shape_.least_length);
    } else if (key == "maxLength") {
      at_most(at, key, value, shape_.most_length);
    } else if (key == "pattern" || key == "format") {
      if (!value.is_string()) fail(at, fmt::format("has a {} that is no string", key));
      const auto text = value.get<std::string>();
      const std::optional<std::string> pattern =
          key == "pattern" ? std::optional(text) : pattern_of_format(text);
      if (!pattern) {
        fail(at, fmt::format("has the format {}, which is not supported", quote(text)),
             "date, time, date-time, uuid and ipv4 are");
      }
      if (std::ranges::find(shape_.patterns, *pattern) == shape_.patterns.end()) {
        shape_.patterns.push_back(*pattern);
      }
    } else {
      return false;
    }
    shape_.mentioned |= SchemaShape::kString;
    return true;
  }

  std::vector<SchemaAt> list(const SchemaAt& at, const std::string& key, const Json& value) {
    if (!value.is_array() || value.empty()) fail(at, fmt::format("has a {} that is no list", key));
    if (value.size() > kMostChoices) {
      fail(at, fmt::format("has a {} of more than {} schemas", key, kMostChoices));
    }
    std::vector<SchemaAt> parts;
    for (size_t i = 0; i < value.size(); ++i) {
      parts.push_back(below(at, value[i], fmt::format("{}/{}", key, i)));
    }
    return parts;
  }

  SchemaAt resolve(const SchemaAt& at, const Json& value) {
    const auto name = value.is_string() ? value.get<std::string>() : std::string();
    if (name != "#" && !name.starts_with("#/")) {
      fail(at, "has a $ref that does not begin with #/: only parts of the document are found");
    }
    try {
      const Json::json_pointer pointer(name.substr(1));
      if (document_.root.contains(pointer)) return {&document_.root.at(pointer), name};
    } catch (const Json::exception&) {
      // Not a pointer.
    }
    fail(at, fmt::format("refers to {}, which is not there", quote(name)));
  }

  void require_disjoint(const SchemaAt& at, const Json& list, const std::vector<SchemaAt>& parts) {
    if (document_.exclusive.contains(&list)) return;
    if (parts.size() > kMostOneOf) {
      fail(at, fmt::format("has a oneOf of more than {} schemas", kMostOneOf), "use anyOf");
    }
    std::vector<SchemaShape> shapes(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) {
      Gatherer(document_, shapes[i], false).gather(parts[i], 0);
      for (size_t j = 0; j < i; ++j) {
        if (are_disjoint(document_, shapes[i], shapes[j])) continue;
        fail(at, fmt::format("has a oneOf of which a value might fit {} and {}", j, i),
             "anyOf allows that; a member with a const of its own tells objects apart");
      }
    }
    document_.exclusive.insert(&list);
  }

  void gather_items(const SchemaAt& at) {
    const Json& schema = *at.schema;
    const auto first = schema.find("prefixItems"), others = schema.find("items");
    SchemaShape::Items items;
    if (first != schema.end()) items.first = list(at, "prefixItems", *first);
    if (others != schema.end()) {
      if (others->is_array()) fail(at, "has items that are a list", "use prefixItems");
      items.others = below(at, *others, "items");
    }
    if (const auto least = schema.find("minItems"); least != schema.end()) {
      at_least(at, "minItems", *least, shape_.least_items);
      shape_.mentioned |= SchemaShape::kArray;
    }
    if (const auto most = schema.find("maxItems"); most != schema.end()) {
      at_most(at, "maxItems", *most, shape_.most_items);
      shape_.mentioned |= SchemaShape::kArray;
    }
    if (items.first.empty() && !items.others) return;
    shape_.items.push_back(std::move(items));
    shape_.mentioned |= SchemaShape::kArray;
  }

  void gather_members(const SchemaAt& at) {
    const Json& schema = *at.schema;
    std::set<std::string> named;
    if (const auto found = schema.find("properties"); found != schema.end()) {
      if (!found->is_object()) fail(at, "has properties that are no object");
      document_.spend(std::ssize(*found));
      for (const auto& [name, value] : found->items()) {
        named.insert(name);
        const auto [place, is_new] = shape_.places.try_emplace(name, shape_.properties.size());
        if (is_new) shape_.properties.emplace_back(name, std::vector<SchemaAt>());
        shape_.properties[place->second].second.push_back(below(at, value, "properties/" + name));
      }
      shape_.mentioned |= SchemaShape::kObject;
    }
    if (const auto found = schema.find("required"); found != schema.end()) {
      if (!found->is_array()) fail(at, "has a required that is no list");
      for (const Json& name : *found) {
        if (!name.is_string()) fail(at, "requires something that is no name");
        shape_.required.insert(name.get<std::string>());
      }
      shape_.mentioned |= SchemaShape::kObject;
    }
    if (const auto found = schema.find("additionalProperties"); found != schema.end()) {
      shape_.others.push_back({named, below(at, *found, "additionalProperties")});
      shape_.mentioned |= SchemaShape::kObject;
    }
  }

  SchemaDocument& document_;
  SchemaShape& shape_;
  bool checks_one_of_;
};

bool share_a_value(const std::vector<Json>& a, const std::vector<Json>& b) {
  return std::ranges::any_of(
      a, [&](const Json& value) { return std::ranges::find(b, value) != b.end(); });
}

}  // namespace

void SchemaDocument::spend(int64_t work) {
  work_left -= work;
  if (work_left < 0) {
    throw UsageError("schema", "its schemas together come to too many combinations",
                     "make it smaller, or its choices fewer");
  }
}

void gather(SchemaDocument& document, const SchemaAt& schema, SchemaShape& shape) {
  if (shape.path.empty()) shape.path = schema.path;
  Gatherer(document, shape, true).gather(schema, 0);
}

bool are_disjoint(SchemaDocument& document, const SchemaShape& a, const SchemaShape& b) {
  if ((a.types & b.types) == 0) return true;
  if (a.values && b.values && !share_a_value(*a.values, *b.values)) return true;
  if ((a.types & b.types) != SchemaShape::kObject) return false;
  for (const std::string& name : a.required) {
    document.spend(1);
    const std::vector<SchemaAt>*own = a.property(name), *other = b.property(name);
    if (!b.required.contains(name) || own == nullptr || other == nullptr) continue;
    SchemaShape mine, theirs;
    for (const SchemaAt& schema : *own) Gatherer(document, mine, false).gather(schema, 0);
    for (const SchemaAt& schema : *other) Gatherer(document, theirs, false).gather(schema, 0);
    if (mine.values && theirs.values && !share_a_value(*mine.values, *theirs.values)) return true;
    if ((mine.types & theirs.types) == 0) return true;
  }
  return false;
}

}  // namespace pronghorn
