#include "grammar/rule_analysis.h"

#include <algorithm>
#include <map>

#include "base/error.h"

namespace pronghorn {
namespace {

using Kind = Expression::Kind;

// The least solution of value(e) = f(parts of e, rules) by passes until nothing changes.
template <typename Holds>
std::vector<bool> least_solution(const GrammarRules& rules, const Holds& holds) {
  const size_t count = rules.expressions().size();
  std::vector<bool> value(count, false);
  // Who waits for an expression: it is looked at again when that one has become true.
  std::vector<std::vector<int32_t>> waiting(count);
  std::vector<int32_t> work;
  for (size_t i = 0; i < count; ++i) {
    const Expression& expression = rules.expressions()[i];
    for (const int32_t part : expression.parts) {
      waiting[static_cast<size_t>(part)].push_back(static_cast<int32_t>(i));
    }
    if (expression.kind == Kind::rule) {
      const int32_t body = rules.rule_at(expression.rule).expression;
      if (body >= 0) waiting[static_cast<size_t>(body)].push_back(static_cast<int32_t>(i));
    }
    work.push_back(static_cast<int32_t>(i));
  }
  while (!work.empty()) {
    const auto i = static_cast<size_t>(work.back());
    work.pop_back();
    if (value[i] || !holds(rules.expressions()[i], value)) continue;
    value[i] = true;
    work.insert(work.end(), waiting[i].begin(), waiting[i].end());
  }
  return value;
}

bool of_rule(const GrammarRules& rules, const Expression& expression,
             const std::vector<bool>& value) {
  const int32_t body = rules.rule_at(expression.rule).expression;
  return body >= 0 && value[static_cast<size_t>(body)];
}

// What holds for an expression as it does for its parts; leaf(e): whether for one without parts.
template <typename Leaf>
std::vector<bool> from_parts(const GrammarRules& rules, const Leaf& leaf) {
  return least_solution(rules, [&](const Expression& e, const std::vector<bool>& value) {
    const auto holds = [&](int32_t part) { return value[static_cast<size_t>(part)]; };
    switch (e.kind) {
      case Kind::literals:
      case Kind::characters:
        return leaf(e);
      case Kind::sequence:
        return std::ranges::all_of(e.parts, holds);
      case Kind::choice:
        return std::ranges::any_of(e.parts, holds);
      case Kind::repeat:
        return e.least == 0 || holds(e.parts[0]);
      case Kind::rule:
        return of_rule(rules, e, value);
    }
    return false;
  });
}

std::vector<bool> find_empty(const GrammarRules& rules) {
  return from_parts(rules, [](const Expression& e) {
    return std::ranges::any_of(e.literals, [](const auto& text) { return text.empty(); });
  });
}

std::vector<bool> find_matching(const GrammarRules& rules) {
  return from_parts(rules, [](const Expression& e) {
    return e.kind == Kind::literals ? !e.literals.empty() : !e.characters.empty();
  });
}

// Makes, of expressions, others that match the same texts but for the empty one.
class NonEmpty {
 public:
  NonEmpty(GrammarRules& rules, std::vector<bool> empty)
      : rules_(rules), empty_(std::move(empty)) {}

  int32_t of(int32_t expression) {
    if (!is_empty(expression)) return expression;
    if (++depth_ > kDeepest) {
      throw UsageError("grammar", "repeats what may be empty and is nested too deeply",
                       "repeat something that is never empty");
    }
    const int32_t made = make(expression);
    --depth_;
    return made;
  }

 private:
  static constexpr int kDeepest = 1000;
  static constexpr size_t kMostCopied = size_t{1} << 20;  // parts of sequences

  int32_t make(int32_t expression) {
    const Expression given = rules_[expression];
    switch (given.kind) {
      case Kind::literals: {
        std::vector<std::string> texts = given.literals;
        std::erase(texts, "");
        return rules_.literals(std::move(texts));
      }
      case Kind::characters:
        return expression;
      case Kind::sequence:
        return of_sequence(given);
      case Kind::choice: {
        std::vector<int32_t> parts;
        for (const int32_t part : given.parts) parts.push_back(of(part));
        return rules_.choice(std::move(parts));
      }
      case Kind::repeat:
        return of_repeat(given);
      case Kind::rule:
        return of_rule(given.rule);
    }
    return expression;
  }

  // Those that are made here are looked at by remove_empty_repeats() too; they are not empty, but
  // for repeats with `least` 0.
  bool is_empty(int32_t expression) const {
    if (static_cast<size_t>(expression) < empty_.size()) {
      return empty_[static_cast<size_t>(expression)];
    }
    const Expression& made = rules_[expression];
    return made.kind == Kind::repeat && made.least == 0;
  }

  // All parts may be empty: the first that is not decides.
  int32_t of_sequence(const Expression& given) {
    std::vector<int32_t> choices;
    for (size_t i = 0; i < given.parts.size(); ++i) {
      copied_ += given.parts.size() - i;
      if (copied_ > kMostCopied) {
        throw UsageError("grammar", "repeats a long sequence of what may be empty",
                         "repeat something that is never empty");
      }
      std::vector<int32_t> parts(given.parts.begin() + static_cast<ptrdiff_t>(i),
                                 given.parts.end());
      parts.front() = of(parts.front());
      choices.push_back(rules_.sequence(std::move(parts)));
    }
    return rules_.choice(std::move(choices));
  }

  int32_t of_repeat(const Expression& given) {
    if (given.most == 0) return rules_.nothing();
    const int32_t part = of(given.parts[0]);
    if (!is_empty(given.parts[0])) return rules_.repeat(part, 1, given.most);
    const int64_t more = given.most < 0 ? given.most : given.most - 1;
    return rules_.sequence({part, rules_.repeat(part, 0, more)});
  }

  int32_t of_rule(int32_t rule) {
    const auto known = made_.find(rule);
    if (known != made_.end()) return rules_.rule(known->second);
    const GrammarRules::Rule given = rules_.rule_at(rule);
    const int32_t own = rules_.declare(given.name, given.where);
    made_[rule] = own;
    rules_.define(own, of(given.expression));
    return rules_.rule(own);
  }

  GrammarRules& rules_;
  std::vector<bool> empty_;
  int depth_ = 0;
  size_t copied_ = 0;
  std::map<int32_t, int32_t> made_;  // rules without the empty text
};

}  // namespace

void remove_empty_repeats(GrammarRules& rules) {
  const std::vector<bool> empty = find_empty(rules);
  NonEmpty non_empty(rules, empty);
  for (size_t i = 0; i < empty.size(); ++i) {
    const Expression expression = rules.expressions()[i];
    if (expression.kind != Kind::repeat || !empty[static_cast<size_t>(expression.parts[0])]) {
      continue;
    }
    const int32_t part = non_empty.of(expression.parts[0]);
    rules.rewrite_repeat(static_cast<int32_t>(i), part, 0);
  }
}

RuleAnalysis::RuleAnalysis(const GrammarRules& rules)
    : matches(find_matching(rules)), empty(find_empty(rules)) {}

}  // namespace pronghorn
