// Recursive descent through expressions. The grammar, with its precedences, is Jinja2's.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/jinja/syntax.h"

namespace pronghorn::jinja {

class ExpressionParser {
 protected:
  using Kind = Token::Kind;
  using Names = std::vector<std::string_view>;
  static constexpr int kMaxExpressionDepth = 400, kMaxBlockDepth = 100;

  ExpressionParser(const std::vector<Token>& tokens, Symbols& symbols)
      : tokens_(tokens), symbols_(symbols) {}

  // -- tokens
  const Token& current() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  const Token& take() {
    const Token& token = tokens_[at_];
    if (token.kind != Kind::end) ++at_;
    return token;
  }
  bool is_symbol(std::string_view text) const {
    return current().kind == Kind::symbol && current().text == text;
  }
  bool is_name(std::string_view text) const {
    return current().kind == Kind::name && current().text == text;
  }
  bool skip_symbol(std::string_view text) {
    const bool found = is_symbol(text);
    if (found) take();
    return found;
  }
  bool skip_name(std::string_view text) {
    const bool found = is_name(text);
    if (found) take();
    return found;
  }
  [[noreturn]] void fail(const std::string& message, int line = 0) const {
    throw SyntaxFailure(message, line == 0 ? current().line : line);
  }
  [[noreturn]] void expected(std::string_view what) const;
  void expect_symbol(std::string_view text) {
    if (!skip_symbol(text)) expected(text);
  }
  void expect_name(std::string_view text) {
    if (!skip_name(text)) expected(text);
  }
  const Token& expect(Kind kind, std::string_view what) {
    if (current().kind != kind) expected(what);
    return take();
  }

  // -- nodes
  ExpressionPtr make(Expression::Kind kind, int line) const {
    auto node = std::make_unique<Expression>();
    node->kind = kind;
    node->line = line;
    return node;
  }
  void adopt(Expression& parent, ExpressionPtr child) const {
    if (child != nullptr) parent.depth = std::max(parent.depth, child->depth + 1);
    if (parent.depth > kMaxExpressionDepth) fail("expressions are nested too deep", parent.line);
    parent.items.push_back(std::move(child));
  }
  template <typename... Items>
  ExpressionPtr make(Expression::Kind kind, int line, Items... items) const {
    ExpressionPtr node = make(kind, line);
    (adopt(*node, std::move(items)), ...);
    return node;
  }

  // Counts how deep the parser itself is.
  class Deeper {
   public:
    Deeper(ExpressionParser& parser, int& depth, int most) : depth_(depth) {
      if (depth_ >= most) parser.fail("blocks or expressions are nested too deep");
      ++depth_;
    }
    ~Deeper() { --depth_; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

   private:
    int& depth_;
  };

  // Within it, names of filters and tests may be unknown: they are looked up when they are used.
  class Soft {
   public:
    Soft(ExpressionParser& parser, bool soft) : parser_(parser), before_(parser.soft_) {
      parser.soft_ = soft;
    }
    ~Soft() { parser_.soft_ = before_; }
    Soft(const Soft&) = delete;
    Soft& operator=(const Soft&) = delete;

   private:
    ExpressionParser& parser_;
    bool before_;
  };

  // -- targets of assignments
  ExpressionPtr parse_name_target();
  ExpressionPtr parse_target(bool with_namespace, const Names& ends);
  ExpressionPtr parse_one_target(bool with_namespace);
  void check_target(const Expression& node) const;

  // -- expressions
  bool ends_tuple(const Names& ends) const;
  // Expressions with commas between them are a tuple.
  ExpressionPtr parse_tuple(bool conditional, const Names& ends = {}, bool in_parentheses = false);
  ExpressionPtr parse_expression();
  ExpressionPtr parse_or();
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  using Step = ExpressionPtr (ExpressionParser::*)();
  ExpressionPtr parse_binary(Step operand, std::initializer_list<std::string_view> symbols);
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concatenation();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_operand();
  ExpressionPtr parse_unary(bool with_filter);
  ExpressionPtr parse_primary();
  // Items with commas between them and perhaps one after, up to a bracket.
  template <typename Item>
  void parse_items(std::string_view close, const Expression& node, const Item& item) {
    while (!is_symbol(close)) {
      if (!node.items.empty()) expect_symbol(",");
      if (is_symbol(close)) break;
      item();
    }
    expect_symbol(close);
  }
  ExpressionPtr parse_postfix(ExpressionPtr node);
  ExpressionPtr parse_subscript(ExpressionPtr node, int line);
  ExpressionPtr parse_call(ExpressionPtr callee);
  void parse_arguments(Expression& node);
  std::string parse_dotted_name();
  // Behind the bar.
  ExpressionPtr parse_filter(ExpressionPtr operand);
  ExpressionPtr parse_test(ExpressionPtr operand);

  const std::vector<Token>& tokens_;
  Symbols& symbols_;
  size_t at_ = 0;
  int block_depth_ = 0, expression_depth_ = 0, loop_depth_ = 0;
  bool soft_ = false;
  std::vector<SyntaxFailure> unknown_;  // names of filters and tests that there are not
  std::vector<MacroSyntax*> open_macros_;
};

}  // namespace pronghorn::jinja
