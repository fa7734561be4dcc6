#include "formats/jinja/expression_parser.h"

#include <array>

#include "formats/jinja/engine.h"

namespace pronghorn::jinja {
namespace {

std::string described(const Token& token) {
  switch (token.kind) {
    case Token::Kind::data:
      return "template data";
    case Token::Kind::variable_begin:
      return "begin of print statement";
    case Token::Kind::variable_end:
      return "end of print statement";
    case Token::Kind::block_begin:
      return "begin of statement block";
    case Token::Kind::block_end:
      return "end of statement block";
    case Token::Kind::constant:
      return token.value.text() != nullptr ? token.value.text()->bytes : "number";
    case Token::Kind::end:
      return "end of template";
    default:
      return token.text;
  }
}

}  // namespace

void ExpressionParser::expected(std::string_view what) const {
  fail(fmt::format("expected token '{}', got '{}'", what, described(current())));
}

ExpressionPtr ExpressionParser::parse_name_target() {
  const Token& token = expect(Kind::name, "name");
  ExpressionPtr node = make(Expression::Kind::name, token.line);
  node->symbol = symbols_.number(token.text);
  node->text = token.text;
  check_target(*node);
  return node;
}

ExpressionPtr ExpressionParser::parse_target(bool with_namespace, const Names& ends) {
  const int line = current().line;
  std::vector<ExpressionPtr> parts;
  bool is_tuple = false;
  while (true) {
    if (!parts.empty()) expect_symbol(",");
    if (is_tuple && ends_tuple(ends)) break;
    parts.push_back(parse_one_target(with_namespace));
    if (!is_symbol(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) return std::move(parts.front());
  ExpressionPtr node = make(Expression::Kind::tuple, line);
  for (ExpressionPtr& part : parts) adopt(*node, std::move(part));
  return node;
}

ExpressionPtr ExpressionParser::parse_one_target(bool with_namespace) {
  const Deeper deeper(*this, expression_depth_, kMaxExpressionDepth);
  if (skip_symbol("(")) {
    ExpressionPtr inner = parse_target(with_namespace, {});
    expect_symbol(")");
    return inner;
  }
  const Token& token = current();
  if (token.kind != Kind::name) fail(fmt::format("unexpected '{}'", described(token)));
  if (with_namespace && ahead().kind == Kind::symbol && ahead().text == ".") {
    ExpressionPtr node = make(Expression::Kind::namespace_attribute, token.line);
    node->symbol = symbols_.number(token.text);
    take();
    take();
    node->text = expect(Kind::name, "name").text;
    return node;
  }
  return parse_name_target();
}

void ExpressionParser::check_target(const Expression& node) const {
  constexpr std::array<std::string_view, 6> kFixed = {"true", "false", "none",
                                                      "True", "False", "None"};
  if (std::find(kFixed.begin(), kFixed.end(), node.text) != kFixed.end()) {
    fail("can't assign to 'const'", node.line);
  }
}

bool ExpressionParser::ends_tuple(const Names& ends) const {
  return current().kind == Kind::variable_end || current().kind == Kind::block_end ||
         is_symbol(")") ||
         (current().kind == Kind::name &&
          std::find(ends.begin(), ends.end(), current().text) != ends.end());
}

ExpressionPtr ExpressionParser::parse_tuple(bool conditional, const Names& ends,
                                            bool in_parentheses) {
  const int line = current().line;
  std::vector<ExpressionPtr> parts;
  bool is_tuple = false;
  while (true) {
    if (!parts.empty()) expect_symbol(",");
    if (ends_tuple(ends)) break;
    parts.push_back(conditional ? parse_expression() : parse_or());
    if (!is_symbol(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !parts.empty()) return std::move(parts.front());
  if (!is_tuple && !in_parentheses) {
    fail(fmt::format("Expected an expression, got '{}'", described(current())));
  }
  ExpressionPtr node = make(Expression::Kind::tuple, line);
  for (ExpressionPtr& part : parts) adopt(*node, std::move(part));
  return node;
}

ExpressionPtr ExpressionParser::parse_expression() {
  const Deeper deeper(*this, expression_depth_, kMaxExpressionDepth);
  const int line = current().line;
  const size_t unknown = unknown_.size();
  ExpressionPtr node = parse_or();
  while (skip_name("if")) {
    const Soft soft(*this, true);
    unknown_.erase(unknown_.begin() + static_cast<std::ptrdiff_t>(unknown),
                   unknown_.end());  // what stands before the `if` is as soft
    ExpressionPtr condition = parse_or();
    ExpressionPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
    node = make(Expression::Kind::conditional, line, std::move(node), std::move(condition),
                std::move(otherwise));
  }
  return node;
}

ExpressionPtr ExpressionParser::parse_or() {
  ExpressionPtr left = parse_and();
  while (is_name("or")) {
    const int line = take().line;
    left = make(Expression::Kind::logical_or, line, std::move(left), parse_and());
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_and() {
  ExpressionPtr left = parse_not();
  while (is_name("and")) {
    const int line = take().line;
    left = make(Expression::Kind::logical_and, line, std::move(left), parse_not());
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_not() {
  if (!is_name("not")) return parse_compare();
  const Deeper deeper(*this, expression_depth_, kMaxExpressionDepth);
  const int line = take().line;
  return make(Expression::Kind::logical_not, line, parse_not());
}

ExpressionPtr ExpressionParser::parse_compare() {
  const int line = current().line;
  ExpressionPtr left = parse_sum();
  ExpressionPtr chain;
  while (true) {
    std::string symbol;
    for (const std::string_view candidate : {"==", "!=", "<", "<=", ">", ">="}) {
      if (is_symbol(candidate)) symbol = candidate;
    }
    if (!symbol.empty()) {
      take();
    } else if (skip_name("in")) {
      symbol = "in";
    } else if (is_name("not") && ahead().kind == Kind::name && ahead().text == "in") {
      take();
      take();
      symbol = "not in";
    } else {
      return chain == nullptr ? std::move(left) : std::move(chain);
    }
    if (chain == nullptr) chain = make(Expression::Kind::compare, line, std::move(left));
    adopt(*chain, parse_sum());
    chain->operators.push_back(symbol);
  }
}

ExpressionPtr ExpressionParser::parse_binary(Step operand,
                                             std::initializer_list<std::string_view> symbols) {
  ExpressionPtr left = (this->*operand)();
  while (current().kind == Kind::symbol &&
         std::find(symbols.begin(), symbols.end(), current().text) != symbols.end()) {
    const Token& symbol = take();
    left = make(Expression::Kind::arithmetic, symbol.line, std::move(left), (this->*operand)());
    left->text = symbol.text;
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_sum() {
  return parse_binary(&ExpressionParser::parse_concatenation, {"+", "-"});
}

ExpressionPtr ExpressionParser::parse_concatenation() {
  ExpressionPtr first = parse_product();
  if (!is_symbol("~")) return first;
  ExpressionPtr node = make(Expression::Kind::concatenate, current().line, std::move(first));
  while (skip_symbol("~")) adopt(*node, parse_product());
  return node;
}

ExpressionPtr ExpressionParser::parse_product() {
  return parse_binary(&ExpressionParser::parse_power, {"*", "/", "//", "%"});
}

ExpressionPtr ExpressionParser::parse_power() {
  return parse_binary(&ExpressionParser::parse_operand, {"**"});
}

ExpressionPtr ExpressionParser::parse_operand() { return parse_unary(true); }

ExpressionPtr ExpressionParser::parse_unary(bool with_filter) {
  const Deeper deeper(*this, expression_depth_, kMaxExpressionDepth);
  ExpressionPtr node;
  if (is_symbol("-") || is_symbol("+")) {
    const Token& symbol = take();
    node = make(symbol.text == "-" ? Expression::Kind::negate : Expression::Kind::plus, symbol.line,
                parse_unary(false));
  } else {
    node = parse_primary();
  }
  node = parse_postfix(std::move(node));
  while (with_filter) {
    if (skip_symbol("|")) {
      node = parse_filter(std::move(node));
    } else if (is_name("is")) {
      node = parse_test(std::move(node));
    } else if (is_symbol("(")) {
      node = parse_call(std::move(node));
    } else {
      break;
    }
  }
  return node;
}

ExpressionPtr ExpressionParser::parse_primary() {
  const Token& token = current();
  const int line = token.line;
  if (token.kind == Kind::name) {
    take();
    ExpressionPtr node = make(Expression::Kind::constant, line);
    if (token.text == "true" || token.text == "True") {
      node->value = true;
    } else if (token.text == "false" || token.text == "False") {
      node->value = false;
    } else if (token.text == "none" || token.text == "None") {
      node->value = Value::none();
    } else {
      node->kind = Expression::Kind::name;
      node->symbol = symbols_.number(token.text);
      node->text = token.text;
      for (MacroSyntax* macro : open_macros_) {
        macro->uses_caller |= token.text == "caller";
        macro->uses_varargs |= token.text == "varargs";
        macro->uses_kwargs |= token.text == "kwargs";
      }
    }
    return node;
  }
  if (token.kind == Kind::constant) {
    take();
    ExpressionPtr node = make(Expression::Kind::constant, line);
    node->value = token.value;
    // Strings that follow one another are one.
    while (token.value.text() != nullptr && current().kind == Kind::constant &&
           current().value.text() != nullptr) {
      node->value = Value(node->value.text()->bytes + take().value.text()->bytes);
    }
    return node;
  }
  if (skip_symbol("(")) {
    ExpressionPtr node = parse_tuple(true, {}, true);
    expect_symbol(")");
    return node;
  }
  if (skip_symbol("[")) {
    ExpressionPtr node = make(Expression::Kind::list, line);
    parse_items("]", *node, [&] { adopt(*node, parse_expression()); });
    return node;
  }
  if (skip_symbol("{")) {
    ExpressionPtr node = make(Expression::Kind::dict, line);
    parse_items("}", *node, [&] {
      adopt(*node, parse_expression());
      expect_symbol(":");
      adopt(*node, parse_expression());
    });
    return node;
  }
  fail(fmt::format("unexpected '{}'", described(token)));
}

ExpressionPtr ExpressionParser::parse_postfix(ExpressionPtr node) {
  while (true) {
    const int line = current().line;
    if (skip_symbol(".")) {
      const Token& token = current();
      if (token.kind == Kind::name) {
        take();
        node = make(Expression::Kind::attribute, line, std::move(node));
        node->text = token.text;
      } else if (token.kind == Kind::constant && token.value.integer() != nullptr) {
        take();
        ExpressionPtr index = make(Expression::Kind::constant, line);
        index->value = token.value;
        node = make(Expression::Kind::item, line, std::move(node), std::move(index));
      } else {
        fail("expected name or number");
      }
    } else if (skip_symbol("[")) {
      node = parse_subscript(std::move(node), line);
    } else if (is_symbol("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr node, int line) {
  const auto at_end = [&] { return is_symbol("]") || is_symbol(","); };
  ExpressionPtr first = is_symbol(":") ? nullptr : parse_expression();
  if (is_symbol(":")) {
    ExpressionPtr stop, step;
    take();
    if (!is_symbol(":") && !at_end()) stop = parse_expression();
    if (skip_symbol(":") && !at_end()) step = parse_expression();
    if (is_symbol(",")) fail("several slices in one subscript are not supported");
    expect_symbol("]");
    return make(Expression::Kind::slice, line, std::move(node), std::move(first), std::move(stop),
                std::move(step));
  }
  if (is_symbol(",")) {
    ExpressionPtr tuple = make(Expression::Kind::tuple, line, std::move(first));
    while (skip_symbol(",")) adopt(*tuple, parse_expression());
    first = std::move(tuple);
  }
  expect_symbol("]");
  return make(Expression::Kind::item, line, std::move(node), std::move(first));
}

ExpressionPtr ExpressionParser::parse_call(ExpressionPtr callee) {
  ExpressionPtr node = make(Expression::Kind::call, current().line, std::move(callee));
  parse_arguments(*node);
  return node;
}

void ExpressionParser::parse_arguments(Expression& node) {
  const int line = current().line;
  CallArguments& arguments = node.arguments;
  const auto own = [&](ExpressionPtr value) {
    node.depth = std::max(node.depth, value->depth + 1);
    if (node.depth > kMaxExpressionDepth) fail("expressions are nested too deep", line);
    return value;
  };
  const auto ensure = [&](bool condition) {
    if (!condition) fail("invalid syntax for function call expression", line);
  };
  expect_symbol("(");
  bool begins = true;
  while (!is_symbol(")")) {
    if (!begins) {
      expect_symbol(",");
      if (is_symbol(")")) break;
    }
    begins = false;
    if (skip_symbol("*")) {
      ensure(arguments.more_list == nullptr && arguments.more_named == nullptr);
      arguments.more_list = own(parse_expression());
    } else if (skip_symbol("**")) {
      ensure(arguments.more_named == nullptr);
      arguments.more_named = own(parse_expression());
    } else if (current().kind == Kind::name && ahead().kind == Kind::symbol &&
               ahead().text == "=") {
      ensure(arguments.more_named == nullptr);
      const std::string name = take().text;
      take();
      arguments.named.emplace_back(name, own(parse_expression()));
    } else {
      ensure(arguments.more_list == nullptr && arguments.more_named == nullptr &&
             arguments.named.empty());
      arguments.list.push_back(own(parse_expression()));
    }
  }
  expect_symbol(")");
}

std::string ExpressionParser::parse_dotted_name() {
  std::string name = expect(Kind::name, "name").text;
  while (skip_symbol(".")) name += "." + expect(Kind::name, "name").text;
  return name;
}

ExpressionPtr ExpressionParser::parse_filter(ExpressionPtr operand) {
  const int line = current().line;
  ExpressionPtr node = make(Expression::Kind::filter, line, std::move(operand));
  node->text = parse_dotted_name();
  if (!soft_ && !has_filter(node->text)) {
    unknown_.emplace_back(fmt::format("No filter named {}.", repr(node->text)), line);
  }
  if (is_symbol("(")) parse_arguments(*node);
  return node;
}

ExpressionPtr ExpressionParser::parse_test(ExpressionPtr operand) {
  const int line = take().line;  // is
  const bool negated = skip_name("not");
  ExpressionPtr node = make(Expression::Kind::test, line, std::move(operand));
  node->text = parse_dotted_name();
  if (!soft_ && !has_test(node->text)) {
    unknown_.emplace_back(fmt::format("No test named {}.", repr(node->text)), line);
  }
  const bool ends = is_name("else") || is_name("or") || is_name("and");
  if (is_symbol("(")) {
    parse_arguments(*node);
  } else if (!ends && (current().kind == Kind::name || current().kind == Kind::constant ||
                       is_symbol("[") || is_symbol("{"))) {
    if (is_name("is")) fail("You cannot chain multiple tests with is");
    ExpressionPtr argument = parse_postfix(parse_primary());
    node->depth = std::max(node->depth, argument->depth + 1);
    node->arguments.list.push_back(std::move(argument));
  }
  if (!negated) return node;
  return make(Expression::Kind::logical_not, line, std::move(node));
}

}  // namespace pronghorn::jinja
