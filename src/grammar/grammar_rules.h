// GrammarRules: a context-free grammar as it is written, before it is made ready for matching.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "grammar/code_set.h"

namespace pronghorn {

// What stands in a grammar for a special token of that text: bytes that are no UTF-8, so that
// nothing else can match them.
inline constexpr char kMark = '\xFF';
inline std::string token_mark(std::string_view text) { return kMark + std::string(text) + kMark; }

// An expression of a grammar; parts are other expressions, by number.
struct Expression {
  enum class Kind : uint8_t {
    literals,    // one of some strings of bytes; one of them may be empty
    characters,  // one character of a set
    sequence,    // all parts, in order; without parts the empty text
    choice,      // one of the parts; without parts nothing matches
    repeat,      // the part, `least` to `most` times
    rule         // what the rule says
  } kind = Kind::sequence;
  std::vector<std::string> literals;
  CodeSet characters;
  std::vector<int32_t> parts;
  int64_t least = 0, most = 0;
  int32_t rule = -1;
};

class GrammarRules {
 public:
  static constexpr int64_t kUnlimited = -1;  // of `most`
  // More than any reasonable grammar has, less than what takes long.
  static constexpr size_t kMostExpressions = size_t{1} << 19;

  struct Rule {
    std::string name;
    int32_t expression = -1;  // -1: not defined
    std::string where;        // "3:1" or a path in a schema, for messages
  };

  // Each adds an expression and returns its number. Throw Error when there are too many.
  int32_t empty() { return add({}); }
  int32_t nothing();
  int32_t literal(std::string_view text);
  int32_t literals(std::vector<std::string> texts);
  int32_t characters(CodeSet set);
  int32_t sequence(std::vector<int32_t> parts);
  int32_t choice(std::vector<int32_t> parts);
  int32_t optional(int32_t part) { return repeat(part, 0, 1); }
  int32_t repeat(int32_t part, int64_t least, int64_t most);
  int32_t rule(int32_t number);
  int32_t add(Expression expression);

  // A rule without an expression.
  int32_t declare(std::string name, std::string where = {});
  void define(int32_t rule, int32_t expression);
  // Gives a repeat another part and least number.
  void rewrite_repeat(int32_t repeat, int32_t part, int64_t least);
  // A rule and a reference to it.
  int32_t add_rule(std::string name, int32_t expression);

  const std::vector<Expression>& expressions() const { return expressions_; }
  const std::vector<Rule>& rules() const { return rules_; }
  const Expression& operator[](int32_t expression) const {
    return expressions_[static_cast<size_t>(expression)];
  }
  const Rule& rule_at(int32_t rule) const { return rules_[static_cast<size_t>(rule)]; }

  int32_t start = -1;  // the rule that texts follow

 private:
  std::vector<Expression> expressions_;
  std::vector<Rule> rules_;
};

// Reads a grammar in the form that llama.cpp made known (GBNF):
//
//   root   ::= greeting " " name "!"?      # the rule that texts follow
//   name   ::= [A-Z] [a-z]{1,20} | "you"
//
// Literals in quotes, characters [a-z] and [^a-z], any character (.), names of rules, groups ( ),
// choices |, and repeats * + ? {n} {n,} {n,m}. Escapes: \n \r \t \\ \" \[ \] \- \^ \xHH \uHHHH
// \UHHHHHHHH, all of which are characters. A rule goes on until the next `name ::=`. Where a
// literal has the text of a special token of the vocabulary, that token matches it too (Grammar).
// Throws UsageError(WHERE:LINE:COLUMN) for what is malformed, and for names without a rule.
GrammarRules parse_grammar(std::string_view text, std::string_view where = "grammar");

}  // namespace pronghorn
