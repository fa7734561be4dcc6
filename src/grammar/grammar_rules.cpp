#include "grammar/grammar_rules.h"

#include "base/error.h"

namespace pronghorn {

int32_t GrammarRules::add(Expression expression) {
  if (expressions_.size() >= kMostExpressions) {
    throw UsageError("grammar", fmt::format("has more than {} parts", kMostExpressions),
                     "make it smaller");
  }
  expressions_.push_back(std::move(expression));
  return static_cast<int32_t>(expressions_.size() - 1);
}

int32_t GrammarRules::nothing() {
  Expression expression;
  expression.kind = Expression::Kind::choice;
  return add(std::move(expression));
}

int32_t GrammarRules::literal(std::string_view text) { return literals({std::string(text)}); }

int32_t GrammarRules::literals(std::vector<std::string> texts) {
  Expression expression;
  expression.kind = Expression::Kind::literals;
  expression.literals = std::move(texts);
  return add(std::move(expression));
}

int32_t GrammarRules::characters(CodeSet set) {
  Expression expression;
  expression.kind = Expression::Kind::characters;
  expression.characters = std::move(set);
  return add(std::move(expression));
}

int32_t GrammarRules::sequence(std::vector<int32_t> parts) {
  if (parts.size() == 1) return parts.front();
  Expression expression;
  expression.parts = std::move(parts);
  return add(std::move(expression));
}

int32_t GrammarRules::choice(std::vector<int32_t> parts) {
  if (parts.size() == 1) return parts.front();
  Expression expression;
  expression.kind = Expression::Kind::choice;
  expression.parts = std::move(parts);
  return add(std::move(expression));
}

int32_t GrammarRules::repeat(int32_t part, int64_t least, int64_t most) {
  Expression expression;
  expression.kind = Expression::Kind::repeat;
  expression.parts = {part};
  expression.least = least;
  expression.most = most;
  return add(std::move(expression));
}

int32_t GrammarRules::rule(int32_t number) {
  Expression expression;
  expression.kind = Expression::Kind::rule;
  expression.rule = number;
  return add(std::move(expression));
}

int32_t GrammarRules::declare(std::string name, std::string where) {
  rules_.push_back({std::move(name), -1, std::move(where)});
  return static_cast<int32_t>(rules_.size() - 1);
}

void GrammarRules::define(int32_t rule, int32_t expression) {
  rules_[static_cast<size_t>(rule)].expression = expression;
}

void GrammarRules::rewrite_repeat(int32_t repeat, int32_t part, int64_t least) {
  Expression& expression = expressions_[static_cast<size_t>(repeat)];
  expression.parts[0] = part;
  expression.least = least;
}

int32_t GrammarRules::add_rule(std::string name, int32_t expression) {
  const int32_t number = declare(std::move(name));
  define(number, expression);
  return rule(number);
}

}  // namespace pronghorn
