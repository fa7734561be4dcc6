// Random JSON schemas of all keywords that are understood.
#pragma once

#include <string>

#include "base/random.h"
#include "grammar/naive_validator.h"

namespace pronghorn::testing_support {

class RandomSchema {
 public:
  explicit RandomSchema(Random& random) : random_(random) {}

  Document make() {
    Document root = schema(3);
    if (!root.is_object()) root = {{"anyOf", Document::array({root, {{"type", "null"}}})}};
    // A list that holds itself, and ends.
    root["$defs"] = {
        {"list",
         {{"type", "object"},
          {"properties",
           {{"value", schema(1)},
            {"next",
             {{"anyOf", Document::array({{{"$ref", "#/$defs/list"}}, {{"type", "null"}}})}}}}},
          {"required", Document::array({"next"})},
          {"additionalProperties", false}}}};
    return root;
  }

 private:
  bool coin(uint64_t of = 2) { return random_.below(of) == 0; }
  int64_t small(uint64_t below) { return static_cast<int64_t>(random_.below(below)); }

  Document schema(int depth) {
    switch (random_.below(depth > 0 ? 13 : 7)) {
      case 0:
        return string();
      case 1:
        return number("integer");
      case 2:
        return number("number");
      case 3:
        return {{"type", "boolean"}};
      case 4:
        return {{"enum", {"a", 1, nullptr, "b\"c", Document::array({1, "x"})}}, {"title", "some"}};
      case 5:
        return {{"type", {"string", "null"}}, {"maxLength", 3}};
      case 6:
        return {{"const", small(5)}};
      case 7:
      case 8:
        return object(depth);
      case 9:
        return array(depth);
      case 10:
        return {{"anyOf", {schema(depth - 1), schema(depth - 1)}}};
      case 11:
        return {{"allOf", Document::array({object(depth),
                                           {{"type", "object"},
                                            {"properties", {{"p1", true}}},
                                            {"required", Document::array({"p1"})}}})}};
      default:
        return coin() ? Document{{"$ref", "#/$defs/list"}} : one_of(depth);
    }
  }

  Document one_of(int depth) {
    Document choices = Document::array();
    for (int i = 0; i < 3; ++i) {
      Document one = object(depth);
      one["properties"]["kind"] = {{"const", i}};
      one["required"].push_back("kind");
      choices.push_back(one);
    }
    return {{"oneOf", choices}};
  }

  Document string() {
    Document made = {{"type", "string"}};
    static const char* const kPatterns[] = {"^[a-c]{2,4}$", "b\\d", "^\"?\\\\x$", "^(ab|c)*$"};
    if (coin(3)) {
      made["pattern"] = kPatterns[random_.below(4)];
    } else if (coin()) {
      made["minLength"] = small(4);
      made["maxLength"] = small(60) + 4;
    }
    return made;
  }

  Document number(const char* type) {
    Document made = {{"type", type}};
    const int64_t least = small(40) - 20;
    if (coin()) made[coin() ? "minimum" : "exclusiveMinimum"] = least;
    if (coin()) made[coin() ? "maximum" : "exclusiveMaximum"] = least + 3 + small(200);
    return made;
  }

  Document object(int depth) {
    Document made = {{"type", "object"}, {"properties", Document::object()}};
    made["required"] = Document::array();
    for (int64_t i = 0; i < 1 + small(3); ++i) {
      const std::string name = "p" + std::to_string(i);
      made["properties"][name] = schema(depth - 1);
      if (coin()) made["required"].push_back(name);
    }
    if (coin(3)) made["additionalProperties"] = coin() ? Document(false) : schema(0);
    return made;
  }

  Document array(int depth) {
    Document made = {{"type", "array"}};
    if (coin()) made["items"] = schema(depth - 1);
    if (coin(3)) made["prefixItems"] = {schema(depth - 1), schema(0)};
    if (coin()) made["minItems"] = small(3);
    if (coin()) made["maxItems"] = 3 + small(3);
    return made;
  }

  Random& random_;
};

}  // namespace pronghorn::testing_support
