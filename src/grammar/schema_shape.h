// SchemaShape: what several JSON schemas that hold together ask for, gathered by kind of value.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "grammar/json_rules.h"

namespace pronghorn {

// A schema and its place in the document: "#/properties/name".
struct SchemaAt {
  const nlohmann::ordered_json* schema = nullptr;
  std::string path;
};

// A document with what reading it may still cost: a limit for all of its schemas together.
struct SchemaDocument {
  const nlohmann::ordered_json& root;
  int64_t work_left = int64_t{1} << 20;
  // Lists of oneOf of which no text can follow two.
  std::set<const nlohmann::ordered_json*> exclusive = {};

  // Throws UsageError when no more may be done.
  void spend(int64_t work);
};

struct SchemaShape {
  // Kinds of values; a number that is whole counts as an integer.
  enum Type : uint8_t {
    kNull = 1,
    kBoolean = 2,
    kInteger = 4,
    kFraction = 8,
    kString = 16,
    kArray = 32,
    kObject = 64,
    kAll = 127
  };
  uint8_t types = kAll;
  // Kinds that keywords were about: what is said of no kind may be any.
  uint8_t mentioned = 0;
  std::optional<std::vector<nlohmann::ordered_json>> values;  // enum and const
  NumberBounds bounds;
  int64_t least_length = 0, most_length = GrammarRules::kUnlimited;
  std::vector<std::string> patterns;  // and those of formats
  int64_t least_items = 0, most_items = GrammarRules::kUnlimited;
  // Of the items of each schema: the first ones, and all others.
  struct Items {
    std::vector<SchemaAt> first;
    std::optional<SchemaAt> others;
  };
  std::vector<Items> items;
  std::vector<std::pair<std::string, std::vector<SchemaAt>>> properties;
  std::map<std::string, size_t> places;  // of the properties
  const std::vector<SchemaAt>* property(const std::string& name) const {
    const auto found = places.find(name);
    return found == places.end() ? nullptr : &properties[found->second].second;
  }
  std::set<std::string> required;
  // What a schema says of members that it does not name.
  struct Others {
    std::set<std::string> named;
    SchemaAt schema;
  };
  std::vector<Others> others;
  std::vector<std::vector<SchemaAt>> choices;  // of each one holds
  std::string path;                            // of the first schema, for messages
  int64_t schemas = 0;                         // that were gathered
};

// Adds what a schema of the document asks for. Throws UsageError naming the path: for keywords that
// are not supported or malformed, references that lead nowhere or to themselves, and where it takes
// unreasonable effort.
void gather(SchemaDocument& document, const SchemaAt& schema, SchemaShape& shape);

// Whether no value can have both shapes, as far as that can be told from their types, values, and
// the values of members that both must have.
bool are_disjoint(SchemaDocument& document, const SchemaShape& a, const SchemaShape& b);

}  // namespace pronghorn
