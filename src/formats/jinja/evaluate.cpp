// Expressions of templates.
#include <algorithm>

#include "formats/jinja/interpreter.h"
#include "formats/jinja/loop.h"

namespace pronghorn::jinja {

Value Interpreter::evaluate(const Expression& node, const ScopePtr& scope) {
  using Kind = Expression::Kind;
  const Level level(*this);
  budget.step();
  line_ = node.line;
  const auto item = [&](size_t i) { return evaluate(*node.items[i], scope); };
  switch (node.kind) {
    case Kind::constant:
      return node.value;
    case Kind::name: {
      const Value* found = scope->find(node.symbol);
      if (found != nullptr) return *found;
      return Value::undefined(fmt::format("{} is undefined", repr(node.text)));
    }
    case Kind::list:
    case Kind::tuple: {
      std::vector<Value> items;
      for (size_t i = 0; i < node.items.size(); ++i) items.push_back(item(i));
      return make_list(budget, std::move(items),
                       node.kind == Kind::list ? List::Type::list : List::Type::tuple);
    }
    case Kind::dict: {
      Dict dict;
      for (size_t i = 0; i < node.items.size(); i += 2) {
        const Value key = item(i);
        dict.set(budget, key, item(i + 1));
      }
      return make_dict(budget, std::move(dict));
    }
    case Kind::attribute:
      return attribute_of(*this, item(0), node.text);
    case Kind::item: {
      const Value value = item(0);
      return item_of(*this, value, item(1));
    }
    case Kind::slice: {
      const auto bound = [&](size_t i) {
        return node.items[i] == nullptr ? Value::none() : item(i);
      };
      const Value value = item(0), start = bound(1), stop = bound(2), step = bound(3);
      return slice_of(budget, value, start, stop, step);
    }
    case Kind::call:
      return evaluate_call(node, scope, nullptr);
    case Kind::filter:
      return evaluate_filter(node, scope, nullptr);
    case Kind::test: {
      const Value value = item(0);
      Arguments arguments = evaluate_arguments(node.arguments, scope);
      return call_test(*this, node.text, value, arguments);
    }
    case Kind::negate:
      return negative(item(0));
    case Kind::plus: {
      const Value value = item(0);
      value.must_be_defined();
      if (!real(value)) {
        throw Failure(fmt::format("bad operand type for unary +: '{}'", type_name(value)));
      }
      return value.boolean() != nullptr ? Value(*whole(value)) : value;
    }
    case Kind::logical_not:
      return !truth(item(0));
    case Kind::logical_and: {
      const Value left = item(0);
      return truth(left) ? item(1) : left;
    }
    case Kind::logical_or: {
      const Value left = item(0);
      return truth(left) ? left : item(1);
    }
    case Kind::conditional:
      if (truth(item(1))) return item(0);
      if (node.items[2] != nullptr) return item(2);
      return Value::undefined(
          fmt::format("the inline if-expression on line {} evaluated to false and no else section "
                      "was defined.",
                      node.line));
    case Kind::arithmetic: {
      const Value left = item(0), right = item(1);
      return node.text == "+" ? add(*this, left, right) : arithmetic(*this, node.text, left, right);
    }
    case Kind::concatenate: {
      std::string text;
      for (size_t i = 0; i < node.items.size(); ++i) text += to_text(budget, item(i));
      return make_text(budget, std::move(text));
    }
    case Kind::compare:
      return evaluate_compare(node, scope);
    case Kind::namespace_attribute:
      break;  // a target only
  }
  throw Failure("not an expression");
}

Value Interpreter::evaluate_compare(const Expression& node, const ScopePtr& scope) {
  Value left = evaluate(*node.items[0], scope);
  for (size_t i = 0; i < node.operators.size(); ++i) {
    const Value right = evaluate(*node.items[i + 1], scope);
    const std::string& symbol = node.operators[i];
    bool holds = false;
    if (symbol == "==" || symbol == "!=") {
      holds = equal(budget, left, right) == (symbol == "==");
    } else if (symbol == "in" || symbol == "not in") {
      holds = contains(*this, right, left) == (symbol == "in");
    } else {
      const int order = compare(budget, left, right, symbol);
      holds = symbol == "<"    ? order < 0
              : symbol == "<=" ? order <= 0
              : symbol == ">"  ? order > 0
                               : order >= 0;
    }
    if (!holds) return false;
    left = right;
  }
  return true;
}

Arguments Interpreter::evaluate_arguments(const CallArguments& given, const ScopePtr& scope) {
  Arguments arguments;
  for (const ExpressionPtr& expression : given.list) {
    arguments.list.push_back(evaluate(*expression, scope));
  }
  if (given.more_list != nullptr) {
    for (Value& value : items_of(*this, evaluate(*given.more_list, scope))) {
      arguments.list.push_back(std::move(value));
    }
  }
  for (const auto& [name, expression] : given.named) {
    arguments.named.emplace_back(name, evaluate(*expression, scope));
  }
  if (given.more_named != nullptr) {
    const Value more = evaluate(*given.more_named, scope);
    if (more.dict() == nullptr) throw Failure("argument after ** must be a mapping");
    for (const auto& [name, value] : more.dict()->items) {
      if (name.text() == nullptr) throw Failure("keywords must be strings");
      arguments.named.emplace_back(name.text()->bytes, value);
    }
  }
  return arguments;
}

Value Interpreter::evaluate_call(const Expression& node, const ScopePtr& scope,
                                 const Value* caller) {
  const Value callee = evaluate(*node.items[0], scope);
  Arguments arguments = evaluate_arguments(node.arguments, scope);
  if (caller != nullptr) arguments.named.emplace_back("caller", *caller);
  callee.must_be_defined();
  if (callee.object() == nullptr || !callee.object()->callable()) {
    throw Failure(fmt::format("'{}' object is not callable", type_name(callee)));
  }
  line_ = node.line;
  return callee.object()->call(*this, arguments);
}

Value Interpreter::evaluate_filter(const Expression& node, const ScopePtr& scope,
                                   const Value* block) {
  Value value;
  if (node.items[0] == nullptr) {
    value = *block;
  } else if (node.items[0]->kind == Expression::Kind::filter) {
    value = evaluate_filter(*node.items[0], scope, block);
  } else {
    value = evaluate(*node.items[0], scope);
  }
  Arguments arguments = evaluate_arguments(node.arguments, scope);
  line_ = node.line;
  return call_filter(*this, node.text, value, arguments);
}

}  // namespace pronghorn::jinja
