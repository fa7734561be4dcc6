// JSON schemas: what their grammars allow is valid, and what is refused is refused aloud.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/log.h"
#include "formats/jinja.h"
#include "grammar/json_schema.h"
#include "grammar/naive_validator.h"
#include "grammar/pushdown.h"
#include "grammar/random_schemas.h"
#include "support/errors.h"

namespace pronghorn {
namespace {

using namespace testing_support;
using testing::HasSubstr;

Document document(const std::string& text) { return parse_schema(text, "schema"); }

bool accepts(const Grammar& grammar, std::string_view text) {
  Pushdown machine(grammar);
  Pushdown::State state = machine.start();
  for (const char byte : text) state = machine.step(state, static_cast<uint8_t>(byte));
  return machine.complete(state);
}

struct Case {
  std::string schema;
  std::vector<std::string> good, bad;
};

TEST(Schemas, AllowWhatTheySay) {
  const std::vector<Case> cases = {
      {"true",
       {"1", "-2.5e3", "\"x\"", "[]", "[1, {\"a\": null}]", "{}", "true"},
       {"", "01", "[1,]"}},
      {R"({"type": "null"})", {"null"}, {"nul", "nulll", "0"}},
      {R"({"type": "string"})",
       {R"("")", R"("a\n\u00e9\ud83d\ude00é漢")"},
       {"\"a\nb\"", R"("\x")", R"("\ud83d")", R"("\ude00\ud83d")", R"("a)"}},
      {R"({"type": "string", "minLength": 2, "maxLength": 3})",
       {R"("ab")", R"("é漢x")", R"("\n\ud83d\ude00")"},
       {R"("a")", R"("abcd")"}},
      {R"({"type": "string", "pattern": "^a\\.b$"})", {R"("a.b")"}, {R"("axb")", R"("a.bc")"}},
      {R"({"pattern": "^\"\\\\\\n\\x01$"})", {R"("\"\\\n\u0001")"}, {R"("\"\\n")"}},
      {R"({"format": "date"})",
       {R"("2024-02-29")", R"("2023-12-31")", R"("2000-02-29")"},
       {R"("2023-02-29")", R"("1900-02-29")", R"("2023-04-31")", R"("0000-01-01")",
        R"("2023-13-01")"}},
      {R"({"format": "date-time"})",
       {R"("2023-01-02T03:04:05Z")", R"("2023-01-02T23:59:59.25+01:30")"},
       {R"("2023-01-02 03:04:05Z")", R"("2023-01-02T24:00:00Z")", R"("2023-01-02T03:04:05")"}},
      {R"({"format": "uuid"})",
       {R"("123e4567-e89b-12d3-a456-426614174000")"},
       {R"("123e4567-e89b-12d3-a456-42661417400")"}},
      {R"({"format": "ipv4"})", {R"("255.0.10.1")"}, {R"("256.0.0.1")", R"("1.2.3")"}},
      {R"({"enum": ["a", 1, {"b": []}]})", {R"("a")", "1", R"({"b":[]})"}, {R"("b")", "11"}},
      {R"({"enum": ["a", "bb", 1, 2], "type": ["string", "integer"], "maximum": 1, "maxLength": 1})",
       {R"("a")", "1"},
       {R"("bb")", "2"}},
      {R"({"const": "x\"y"})", {R"("x\"y")"}, {R"("x")"}},
      {R"({"type": ["integer", "null"], "minimum": 3})", {"3", "null", "100"}, {"2", "-3", "3.5"}},
      {R"({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"const": 1}},
           "required": ["b"]})",
       {R"({"b": 1})", R"({"a": 2, "b": 1})", R"({"a":2,"b":1})", "{\n  \"a\": 2,\n  \"b\": 1\n}"},
       {"{}", R"({"a": 2})", R"({"b": 1, "a": 2})", R"({"b": 1, "c": 2})", R"({"b": 1,})"}},
      {R"({"properties": {"a": true}, "additionalProperties": {"type": "integer"}})",
       {"{}", R"({"a": "x", "b": 1, "aa": 2})", R"({"c": 1})", R"({"a": "x"})"},
       {R"({"b": "x"})", R"({"b": 1, "a": 2})", R"({"\u0061": 1})"}},
      {R"({"type": "object"})", {"{}", R"({"x": [1]})"}, {"[]"}},
      {R"({"type": "object", "additionalProperties": false})", {"{}", "{ }"}, {R"({"x": 1})"}},
      {R"({"required": ["z"]})", {R"({"z": 3})", R"({"z": 3, "y": 4})"}, {"{}"}},
      {R"({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2})",
       {"[true]", "[true, false]", "[ true,false ]"},
       {"[]", "[true, true, true]", "[1]"}},
      {R"({"prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}})",
       {"[]", "[1]", "[1, 2]", "[1, 2, 3, 3]"},
       {"[2]", "[1, 3]", "[1, 2, 4]"}},
      {R"({"prefixItems": [{"const": 1}, {"const": 2}], "items": false, "minItems": 1})",
       {"[1]", "[1, 2]"},
       {"[]", "[1, 2, 3]"}},
      {R"({"prefixItems": [{"const": 1}, {"const": 2}], "minItems": 3, "maxItems": 3})",
       {"[1, 2, 0]"},
       {"[1, 2]", "[1, 2, 0, 0]"}},
      {R"({"type": "array", "maxItems": 0})", {"[]"}, {"[1]"}},
      {R"({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]})",
       {"1", R"("x")"},
       {R"("xy")", "null"}},
      {R"({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
           "anyOf": [{"properties": {"b": {"const": 1}}, "required": ["b"]},
                     {"properties": {"c": {"const": 2}}, "required": ["c"]}]})",
       {R"({"a": 1, "b": 1})", R"({"a": 1, "c": 2})"},
       {R"({"a": 1})", R"({"b": 1})", R"({"a": 1, "b": 1, "c": 2})"}},
      {R"({"oneOf": [{"type": "string"}, {"type": "integer"}]})", {"1", R"("x")"}, {"null"}},
      {R"({"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 4}, {"minimum": 3}]})",
       {"3", "4"},
       {"2", "5"}},
      {R"({"allOf": [{"properties": {"a": {"type": "integer"}}, "additionalProperties": false},
                     {"properties": {"a": {"minimum": 5}, "b": true}}], "type": "object"})",
       {"{}", R"({"a": 5})"},
       {R"({"a": 4})", R"({"b": 1})"}},
      {R"({"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#"}}}})",
       {"[]", "[[], [[]]]"},
       {"[1]"}},
      {R"({"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}},
           "required": ["v"], "additionalProperties": false})",
       {R"({"v": 1})", R"({"v": 1, "next": {"v": 2, "next": {"v": 3}}})"},
       {R"({"v": 1, "next": {}})"}},
      {R"({"title": "t", "description": "d", "default": 1, "examples": [2], "$schema": "x",
           "type": "integer", "x-y": 3})",
       {"1"},
       {"1.5"}},
  };
  for (const Case& one : cases) {
    const Document schema = document(one.schema);
    const Grammar grammar(schema_rules(schema));
    for (const std::string& text : one.good) {
      EXPECT_TRUE(accepts(grammar, text)) << one.schema << "\n" << text;
      if (one.schema.find("format") == std::string::npos) {
        EXPECT_TRUE(is_valid(schema, schema, document(text))) << one.schema << "\n" << text;
      }
    }
    for (const std::string& text : one.bad) {
      EXPECT_FALSE(accepts(grammar, text)) << one.schema << "\n" << text;
    }
  }
}

TEST(Schemas, WhatIsNotUnderstoodIsRefusedWithItsPath) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"type": "strin"})", "# has an unknown type"},
      {R"({"properties": {"a": {"not": {}}}})", "#/properties/a has the keyword 'not'"},
      {R"({"items": {"uniqueItems": true}})", "#/items has the keyword 'uniqueItems'"},
      {R"({"minProperties": 1})", "'minProperties'"},
      {R"({"patternProperties": {}})", "'patternProperties'"},
      {R"({"if": true})", "'if'"},
      {R"({"type": "number", "multipleOf": 2})", "'multipleOf'"},
      {R"({"tyype": "number"})", "'tyype'"},
      {R"({"format": "email"})", "the format 'email'"},
      {R"x({"pattern": "(?=a)"})x", "looks ahead"},
      {R"({"pattern": "a", "minLength": 2})", "together"},
      {R"({"type": "number", "minimum": 0.5})", "not whole"},
      {R"({"$ref": "http://example.com"})", "only parts of the document"},
      {R"({"$ref": "#/$defs/x"})", "which is not there"},
      {R"({"$ref": "#"})", "refers to itself"},
      {R"({"anyOf": [{"$ref": "#"}, {"type": "null"}]})", "itself"},
      {R"({"allOf": [{"$ref": "#"}]})", "refers to itself"},
      {R"({"oneOf": [{"type": "number"}, {"type": "integer"}]})", "might fit 0 and 1"},
      {R"({"oneOf": [{"type": "object"}, {"properties": {"a": {}}, "type": "object"}]})",
       "might fit"},
      {R"({"enum": 3})", "an enum that is no list"},
      {R"({"minLength": -1})", "whole number"},
      {R"({"minLength": 1e9})", "more than"},
      {R"({"required": "a"})", "no list"},
      {R"({"items": [{}]})", "prefixItems"},
      {R"({"type": "object", "properties": {"a": false}, "required": ["a"]})", "no text ends"},
      {R"({"properties": {"a": {"$ref": "#"}}, "required": ["a"]})", "no text ends"},
      {"3", "must be an object"},
  };
  for (const auto& [schema, message] : cases) {
    const std::string refusal =
        error_of([&, schema = schema] { Grammar(schema_rules(document(schema))); });
    EXPECT_THAT(refusal, HasSubstr(message)) << schema;
  }
}

// Of a document that says little and means much: an error, or a grammar, within a bounded time.
TEST(Schemas, HostileOnesTakeBoundedTime) {
  std::vector<std::string> texts;
  std::string laughs = R"({"$ref": "#/$defs/d0", "$defs": {)", choices = laughs;
  for (int i = 0; i < 40; ++i) {
    const std::string next = "{\"$ref\": \"#/$defs/d" + std::to_string(i + 1) + "\"}";
    const std::string name = "\"d" + std::to_string(i) + "\": ";
    laughs += name + "{\"allOf\": [" + next + ", " + next + "]}, ";
    choices += name + "{\"anyOf\": [" + next + ", " + next + ", {\"oneOf\": [" + next +
               ", {\"type\": \"null\"}]}]}, ";
  }
  texts.push_back(laughs + R"("d40": {"type": "integer"}}})");
  texts.push_back(choices + R"("d40": {"type": "integer"}}})");
  std::string members = R"({"type": "object", "properties": {)", names = R"({"enum": [)";
  for (int i = 0; i < 4000; ++i) {
    members += (i == 0 ? "\"" : ", \"") + std::to_string(i) + R"(": {"type": "integer"})";
    names += (i == 0 ? "\"" : ", \"") + std::string(static_cast<size_t>(i % 50), 'x') +
             std::to_string(i) + "\"";
  }
  texts.push_back(members + "}}");
  texts.push_back(members + R"(}, "additionalProperties": {"type": "null"}})");
  texts.push_back(names + "]}");
  // Choices within values within choices, on one stack; and the same oneOf in each of many choices.
  std::string stack = R"({"$ref": "#/$defs/L0", "$defs": {"C": {"allOf": [{"anyOf": [{}]})";
  for (int i = 1; i < 256; ++i) stack += R"(, {"anyOf": [{}]})";
  stack += "]}";
  for (int i = 0; i < 77; ++i) {
    stack += fmt::format(
        R"(, "L{}": {{"properties": {{"a": {{"$ref": "#/$defs/L{}"}}}}, "$ref": "#/$defs/C"}})", i,
        i + 1);
  }
  texts.push_back(stack + R"(, "L77": {}}})");
  std::string again = R"({"anyOf": [{"$ref": "#/$defs/X"})", parts, base;
  for (int i = 0; i < 4000; ++i) {
    if (i < 250) again += R"(, {"$ref": "#/$defs/X"})";
    if (i < 60) {
      parts += fmt::format(R"({}{{"$ref": "#/$defs/B", "properties": {{"zz": {{"const": {}}}}},
                             "required": ["zz"]}})",
                           i == 0 ? "" : ", ", i);
    }
    base += fmt::format(R"({}"{}": {{}})", i == 0 ? "" : ", ", i);
  }
  texts.push_back(again + R"(], "$defs": {"X": {"oneOf": [)" + parts +
                  R"(]}, "B": {"type": "object", "properties": {)" + base + "}}}}");
  texts.push_back(R"({"type": "array", "maxItems": 1000000, "items": {"type": "array",
                      "minItems": 1000000, "items": {"type": "string", "maxLength": 1000000}}})");
  for (const std::string& text : texts) {
    const double start = now_seconds();
    const std::string message = error_of([&] {
      const Grammar grammar(schema_rules(document(text)));
      Pushdown machine(grammar);
      machine.start();
    });
    EXPECT_LT(now_seconds() - start, 10.0) << text.substr(0, 100) << ": " << message;
  }
}

// Texts that are written byte by byte, any that the grammar allows, are JSON and valid.
TEST(Schemas, WhateverIsWrittenIsValid) {
  Random random(9, "schemas");
  int written = 0, long_ones = 0;
  for (int i = 0; i < 400; ++i) {
    const Document schema = RandomSchema(random).make();
    std::optional<Grammar> grammar;
    const std::string refusal = error_of([&] { grammar.emplace(schema_rules(schema)); });
    if (!grammar) {
      // Of these keywords only what nothing fits.
      ASSERT_THAT(refusal, HasSubstr("no text ends")) << schema.dump();
      continue;
    }
    for (int j = 0; j < 4; ++j) {
      Pushdown machine(*grammar);
      Pushdown::State state = machine.start();
      std::string text;
      while (machine.goes_on(state) && text.size() < 3000) {
        if (machine.complete(state) && random.below(2) == 0) break;
        std::vector<uint8_t> ends, others;
        for (int byte = 0; byte < 256; ++byte) {
          if (machine.step(state, static_cast<uint8_t>(byte)) == Pushdown::kDead) continue;
          const bool closes = byte == '"' || byte == ']' || byte == '}' || byte == 'n';
          (closes ? ends : others).push_back(static_cast<uint8_t>(byte));
        }
        const bool close = !ends.empty() && (others.empty() || random.below(3) == 0);
        const std::vector<uint8_t>& from = close ? ends : others;
        ASSERT_FALSE(from.empty()) << schema.dump() << "\n" << text;
        const uint8_t byte = from[random.below(from.size())];
        text.push_back(static_cast<char>(byte));
        state = machine.step(state, byte);
      }
      if (!machine.complete(state)) continue;  // it has become too long
      const Document value = Document::parse(text, nullptr, false);
      ASSERT_FALSE(value.is_discarded()) << schema.dump() << "\n" << text;
      ASSERT_TRUE(is_valid(schema, schema, value)) << schema.dump() << "\n" << text;
      ++written;
      long_ones += text.size() > 40 ? 1 : 0;
    }
  }
  EXPECT_GT(written, 1000);
  EXPECT_GT(long_ones, 200);
}

}  // namespace
}  // namespace pronghorn
