// JSON values as parts of a grammar.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "grammar/grammar_rules.h"

namespace pronghorn {

// Bounds of a number; those of `number` must be whole.
struct NumberBounds {
  std::optional<double> least, most;
  bool above_least = false, below_most = false;  // the bound itself is out

  bool any() const { return least || most; }
};

// Adds expressions for JSON texts. What all schemas need is added once.
//
// Between the parts of a value there is no space, one, or a line break with up to 20 more; numbers
// have at most 16 digits before and after the point: a text cannot go on forever in what says
// nothing.
class JsonRules {
 public:
  explicit JsonRules(GrammarRules& rules) : rules_(rules) {}

  int32_t space();
  // A comma, or what stands between the parts of a value.
  int32_t punctuation(std::string_view mark);
  int32_t value();
  int32_t any_object();
  int32_t any_array();
  // A string of `least` to `most` characters (-1: any number).
  int32_t string(int64_t least = 0, int64_t most = GrammarRules::kUnlimited);
  // A string whose text matches the pattern. Throws UsageError.
  int32_t matching_string(std::string_view pattern, std::string_view where);
  // The name of a member, without escapes, that is none of `names`.
  int32_t other_name(std::span<const std::string> names);
  int32_t integer(const NumberBounds& bounds);
  int32_t number(const NumberBounds& bounds);
  int32_t boolean() { return rules_.literals({"false", "true"}); }
  int32_t null() { return rules_.literal("null"); }
  // name: the expression of a string. Adds what stands between it and the value.
  int32_t member(int32_t name, int32_t value);

 private:
  int32_t once(const char* name, const std::function<int32_t()>& make);
  int32_t character();
  int32_t escaped(const CodeSet& set);
  int32_t digits(int64_t least, int64_t most);
  int32_t same_length(const std::string& least, const std::string& most);
  int32_t whole(int64_t least, std::optional<int64_t> most);
  int32_t from_zero(const NumberBounds& bounds, bool fractions);
  int32_t bounded(const NumberBounds& bounds, bool fractions);
  int32_t with_fraction(int32_t whole);

  GrammarRules& rules_;
  std::vector<std::pair<std::string, int32_t>> made_;  // rules that are added once
};

}  // namespace pronghorn
