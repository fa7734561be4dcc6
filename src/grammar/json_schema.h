// JSON schemas as grammars of the JSON texts that they allow.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "grammar/grammar_rules.h"

namespace pronghorn {

// Adds an expression of JSON texts, each of which the schema (JSON Schema 2020-12) allows. Not all
// that it allows: members come in the order of `properties`, without such that are not named unless
// additionalProperties says more; where keywords speak of one type only, the value has it; numbers
// and the space between values are bounded (grammar/json_rules.h).
//
// Understood are type, enum, const, properties, required, additionalProperties, items, prefixItems,
// minItems, maxItems, minLength, maxLength, pattern, format (date, time, date-time, uuid, ipv4),
// minimum, maximum and the exclusive ones (of numbers that are not integers: whole bounds), anyOf,
// oneOf whose schemas exclude one another, allOf, $ref within the document, true and false. What
// only describes is passed over. Throws UsageError, naming the path, for anything else.
int32_t add_schema(GrammarRules& rules, const nlohmann::ordered_json& schema);

// The grammar of a schema, and of any JSON object.
GrammarRules schema_rules(const nlohmann::ordered_json& schema);
GrammarRules json_object_rules();

// A JSON document whose objects keep their order. Throws Error(where) for text that is not one.
nlohmann::ordered_json parse_schema(std::string_view text, std::string_view where);

}  // namespace pronghorn
