#include "grammar/json_schema.h"

#include <algorithm>
#include <map>
#include <memory>

#include "base/error.h"
#include "base/quote.h"
#include "formats/jinja.h"
#include "grammar/json_rules.h"
#include "grammar/schema_shape.h"

namespace pronghorn {
namespace {

using Json = nlohmann::ordered_json;
using Shape = SchemaShape;

constexpr size_t kMostFirstItems = 1000;
constexpr int kDeepest = 300;  // values and choices within one another

int64_t length_of(const std::string& text) {
  return std::ranges::count_if(text,
                               [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

class SchemaCompiler {
 public:
  SchemaCompiler(GrammarRules& rules, const Json& root)
      : rules_(rules), json_(rules), document_{root} {}

  int32_t add() { return rule_of({{&document_.root, "#"}}); }

 private:
  // Counts values and choices within one another, whichever they are: each takes of one stack.
  class Nested {
   public:
    Nested(SchemaCompiler& compiler, const std::string& path) : compiler_(compiler) {
      if (++compiler_.depth_ <= kDeepest) return;
      throw UsageError("schema", path +
                                     " is nested too deeply, or refers to itself without a value "
                                     "between");
    }
    ~Nested() { --compiler_.depth_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    SchemaCompiler& compiler_;
  };

  // The rule of values for which all the schemas hold.
  int32_t rule_of(const std::vector<SchemaAt>& schemas) {
    std::vector<const Json*> key;
    for (const SchemaAt& schema : schemas) key.push_back(schema.schema);
    std::ranges::sort(key);
    const auto known = made_.find(key);
    if (known != made_.end()) return rules_.rule(known->second);
    const Nested nested(*this, schemas.front().path);
    const int32_t rule = rules_.declare(schemas.front().path);
    made_[key] = rule;
    Shape shape;
    for (const SchemaAt& schema : schemas) gather(document_, schema, shape);
    rules_.define(rule, any_choice(shape));
    return rules_.rule(rule);
  }

  // Takes the choices of a shape one after another.
  int32_t any_choice(Shape& shape) {
    if (shape.choices.empty()) return typed(shape);
    const Nested nested(*this, shape.path);
    const std::vector<SchemaAt> choice = shape.choices.back();
    shape.choices.pop_back();
    std::vector<int32_t> parts;
    for (const SchemaAt& schema : choice) {
      const auto one = std::make_unique<Shape>(shape);
      document_.spend(static_cast<int64_t>(1 + one->properties.size()));
      gather(document_, schema, *one);
      parts.push_back(any_choice(*one));
    }
    return rules_.choice(std::move(parts));
  }

  int32_t typed(const Shape& shape) {
    if (shape.values) return one_of(shape);
    uint8_t types = shape.types;
    if (types == Shape::kAll && shape.mentioned == 0) return json_.value();
    if (types == Shape::kAll) types = shape.mentioned;
    std::vector<int32_t> parts;
    if ((types & Shape::kObject) != 0) parts.push_back(object(shape));
    if ((types & Shape::kArray) != 0) parts.push_back(array(shape));
    if ((types & Shape::kString) != 0) parts.push_back(string(shape));
    if ((types & Shape::kFraction) != 0) {
      parts.push_back(json_.number(shape.bounds));
    } else if ((types & Shape::kInteger) != 0) {
      parts.push_back(json_.integer(shape.bounds));
    }
    if ((types & Shape::kBoolean) != 0) parts.push_back(json_.boolean());
    if ((types & Shape::kNull) != 0) parts.push_back(json_.null());
    return rules_.choice(std::move(parts));
  }

  [[noreturn]] static void refuse(const Shape& shape, const std::string& problem) {
    throw UsageError("schema", fmt::format("{} {}", printable(shape.path, 200), problem));
  }

  // Of values that are named, those which the other keywords allow.
  int32_t one_of(const Shape& shape) {
    std::vector<std::string> texts;
    for (const Json& value : *shape.values) {
      if (!fits(shape, value)) continue;
      texts.push_back(value.dump(-1, ' ', false, Json::error_handler_t::replace));
    }
    return rules_.literals(std::move(texts));
  }

  static bool fits(const Shape& shape, const Json& value) {
    uint8_t type = Shape::kNull;
    if (value.is_boolean()) type = Shape::kBoolean;
    if (value.is_string()) type = Shape::kString;
    if (value.is_array()) type = Shape::kArray;
    if (value.is_object()) type = Shape::kObject;
    if (value.is_number()) {
      const auto number = value.get<double>();
      type = std::floor(number) == number ? Shape::kInteger : Shape::kFraction;
      const NumberBounds& b = shape.bounds;
      const bool inside =
          (!b.least || number > *b.least || (number == *b.least && !b.above_least)) &&
          (!b.most || number < *b.most || (number == *b.most && !b.below_most));
      if (!inside) return false;
    }
    if ((shape.types & type) == 0) return false;
    if (type == Shape::kString) {
      const int64_t length = length_of(value.get<std::string>());
      if (!shape.patterns.empty())
        refuse(shape, "has both a pattern or format and an enum or const");
      return length >= shape.least_length && (shape.most_length < 0 || length <= shape.most_length);
    }
    const bool has_parts =
        (type == Shape::kArray &&
         (!shape.items.empty() || shape.least_items > 0 || shape.most_items >= 0)) ||
        (type == Shape::kObject &&
         (!shape.properties.empty() || !shape.required.empty() || !shape.others.empty()));
    if (has_parts)
      refuse(shape, "has an enum or const of objects or lists beside what it says of them");
    return true;
  }

  int32_t string(const Shape& shape) {
    if (shape.patterns.empty()) return json_.string(shape.least_length, shape.most_length);
    const bool lengths = shape.least_length > 0 || shape.most_length >= 0;
    if (lengths || shape.patterns.size() > 1) {
      refuse(shape,
             "has a pattern or format together with another, or with a length: together they "
             "are not supported");
    }
    return json_.matching_string(shape.patterns.front(), "schema: " + shape.path);
  }

  // What all the schemas say of the item at `index`.
  int32_t item(const Shape& shape, size_t index) {
    std::vector<SchemaAt> schemas;
    for (const Shape::Items& items : shape.items) {
      if (index < items.first.size()) {
        schemas.push_back(items.first[index]);
      } else if (items.others) {
        schemas.push_back(*items.others);
      }
    }
    return schemas.empty() ? json_.value() : rule_of(schemas);
  }

  int32_t array(const Shape& shape) {
    size_t first = 0;
    for (const Shape::Items& items : shape.items) first = std::max(first, items.first.size());
    if (first > kMostFirstItems) refuse(shape, "has too many prefixItems");
    if (shape.most_items >= 0 && shape.most_items < shape.least_items) return rules_.nothing();
    const auto next = [&](int32_t item) { return rules_.sequence({json_.punctuation(","), item}); };
    // What follows after `first` items, then after one less, down to none.
    const auto count = static_cast<int64_t>(first);
    int32_t rest = rules_.empty();
    const auto end_or = [&](int64_t written, int32_t more) {
      if (shape.most_items >= 0 && written >= shape.most_items) return rules_.empty();
      return written >= shape.least_items ? rules_.optional(more) : more;
    };
    const int32_t any = item(shape, first);
    if (first > 0) {
      if (shape.most_items < 0 || shape.most_items > count) {
        rest = rules_.repeat(next(any), std::max<int64_t>(0, shape.least_items - count),
                             shape.most_items < 0 ? shape.most_items : shape.most_items - count);
      }
      for (int64_t i = count - 1; i > 0; --i) {
        const int32_t own = next(item(shape, static_cast<size_t>(i)));
        rest = rules_.add_rule(shape.path + "/items", end_or(i, rules_.sequence({own, rest})));
      }
      rest = rules_.sequence({item(shape, 0), rest});
    } else {
      rest = rules_.sequence(
          {any, rules_.repeat(next(any), std::max<int64_t>(0, shape.least_items - 1),
                              shape.most_items < 0 ? shape.most_items
                                                   : std::max<int64_t>(0, shape.most_items - 1))});
    }
    return rules_.sequence({json_.punctuation("["),
                            end_or(0, rules_.sequence({rest, json_.space()})),
                            rules_.literal("]")});
  }

  struct Member {
    std::string name;
    int32_t text;  // name and value
    bool required;
  };

  // Of all members that are named; what other schemas say of members that they do not name holds
  // for them, too.
  std::vector<Member> members(const Shape& shape) {
    std::vector<std::pair<std::string, std::vector<SchemaAt>>> named = shape.properties;
    for (const std::string& name : shape.required) {
      const auto known = std::ranges::find(named, name, [](const auto& one) { return one.first; });
      if (known == named.end()) named.emplace_back(name, std::vector<SchemaAt>());
    }
    std::vector<Member> members;
    for (auto& [name, schemas] : named) {
      for (const Shape::Others& others : shape.others) {
        if (!others.named.contains(name)) schemas.push_back(others.schema);
      }
      const int32_t value = schemas.empty() ? json_.value() : rule_of(schemas);
      const std::string quoted = Json(name).dump(-1, ' ', false, Json::error_handler_t::replace);
      members.push_back(
          {name, json_.member(rules_.literal(quoted), value), shape.required.contains(name)});
    }
    return members;
  }

  // A member that is not named; nothing if there is none.
  std::optional<int32_t> other_member(const Shape& shape, const std::vector<Member>& members) {
    if (shape.others.empty() && !shape.properties.empty()) return {};
    std::vector<SchemaAt> schemas;
    for (const Shape::Others& others : shape.others) schemas.push_back(others.schema);
    std::vector<std::string> names;
    for (const Member& member : members) names.push_back(member.name);
    const int32_t name = names.empty() ? json_.string() : json_.other_name(names);
    return json_.member(name, schemas.empty() ? json_.value() : rule_of(schemas));
  }

  int32_t object(const Shape& shape) {
    const std::vector<Member> members = this->members(shape);
    const std::optional<int32_t> other = other_member(shape, members);
    // What may follow where some members are written, and where none is; from the last one on.
    int32_t after = rules_.empty(), before = rules_.empty();
    if (other) {
      after = rules_.repeat(rules_.sequence({json_.punctuation(","), *other}), 0,
                            GrammarRules::kUnlimited);
      before = rules_.optional(rules_.sequence({*other, after, json_.space()}));
      after = rules_.sequence({after, json_.space()});
    } else {
      after = json_.space();
    }
    for (size_t i = members.size(); i > 0; --i) {
      const Member& member = members[i - 1];
      std::vector<int32_t> with = {rules_.sequence({json_.punctuation(","), member.text, after})};
      std::vector<int32_t> first = {rules_.sequence({member.text, after})};
      if (!member.required) {
        with.push_back(after);
        first.push_back(before);
      }
      after = rules_.add_rule(shape.path + "/" + member.name, rules_.choice(std::move(with)));
      before = rules_.add_rule(shape.path + "/" + member.name, rules_.choice(std::move(first)));
    }
    return rules_.sequence({json_.punctuation("{"), before, rules_.literal("}")});
  }

  GrammarRules& rules_;
  JsonRules json_;
  SchemaDocument document_;
  std::map<std::vector<const Json*>, int32_t> made_;
  int depth_ = 0;
};

}  // namespace

int32_t add_schema(GrammarRules& rules, const Json& schema) {
  return SchemaCompiler(rules, schema).add();
}

GrammarRules schema_rules(const Json& schema) {
  GrammarRules rules;
  const int32_t text = add_schema(rules, schema);
  rules.start = rules[text].rule;
  return rules;
}

GrammarRules json_object_rules() {
  GrammarRules rules;
  rules.start = rules[JsonRules(rules).any_object()].rule;
  return rules;
}

Json parse_schema(std::string_view text, std::string_view where) {
  return parse_variables(text, where);
}

}  // namespace pronghorn
