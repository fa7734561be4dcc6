// Recursive descent. The grammar, with its precedences, is Jinja2's.
#include <algorithm>
#include <array>

#include "formats/jinja/engine.h"
#include "formats/jinja/syntax.h"

namespace pronghorn::jinja {
namespace {

using Kind = Token::Kind;
using Names = std::vector<std::string_view>;

constexpr int kMaxExpressionDepth = 400, kMaxBlockDepth = 100;

std::string described(const Token& token) {
  switch (token.kind) {
    case Kind::data:
      return "template data";
    case Kind::variable_begin:
      return "begin of print statement";
    case Kind::variable_end:
      return "end of print statement";
    case Kind::block_begin:
      return "begin of statement block";
    case Kind::block_end:
      return "end of statement block";
    case Kind::constant:
      return token.value.text() != nullptr ? token.value.text()->bytes : "number";
    case Kind::end:
      return "end of template";
    default:
      return token.text;
  }
}

class Parser {
 public:
  Parser(const std::vector<Token>& tokens, Symbols& symbols) : tokens_(tokens), symbols_(symbols) {}

  Block run() {
    Block block = parse_block({});
    if (!unknown_.empty()) throw unknown_.front();
    return block;
  }

 private:
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
  [[noreturn]] void expected(std::string_view what) const {
    fail(fmt::format("expected token '{}', got '{}'", what, described(current())));
  }
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
    Deeper(Parser& parser, int& depth, int most) : depth_(depth) {
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
    Soft(Parser& parser, bool soft) : parser_(parser), before_(parser.soft_) {
      parser.soft_ = soft;
    }
    ~Soft() { parser_.soft_ = before_; }
    Soft(const Soft&) = delete;
    Soft& operator=(const Soft&) = delete;

   private:
    Parser& parser_;
    bool before_;
  };

  // -- statements

  // Up to one of the tags, which is left there. No tags: up to the end.
  Block parse_block(const Names& ends) {
    const Deeper deeper(*this, block_depth_, kMaxBlockDepth);
    Block block;
    while (current().kind != Kind::end) {
      const int line = current().line;
      if (current().kind == Kind::data) {
        block.push_back(statement(Statement::Kind::data, line));
        block.back()->text = take().text;
      } else if (current().kind == Kind::variable_begin) {
        take();
        block.push_back(statement(Statement::Kind::output, line));
        block.back()->expressions.push_back(parse_tuple(true));
        expect(Kind::variable_end, "end of print statement");
      } else {
        take();  // {%
        if (current().kind != Kind::name) fail("tag name expected");
        if (std::find(ends.begin(), ends.end(), current().text) != ends.end()) return block;
        block.push_back(parse_statement(ends));
        expect(Kind::block_end, "end of statement block");
      }
    }
    if (!ends.empty()) {
      fail(
          fmt::format("Unexpected end of template. Jinja was looking for the following tags: '{}'.",
                      fmt::join(ends, "' or '")));
    }
    return block;
  }

  // The rest of a tag, and what follows up to one of the tags.
  Block parse_body(const Names& ends) {
    skip_symbol(":");
    expect(Kind::block_end, "end of statement block");
    return parse_block(ends);
  }

  std::unique_ptr<Statement> statement(Statement::Kind kind, int line) const {
    auto made = std::make_unique<Statement>();
    made->kind = kind;
    made->line = line;
    return made;
  }

  std::unique_ptr<Statement> parse_statement(const Names& ends) {
    const Token& tag = take();
    const std::string& name = tag.text;
    auto made = statement(Statement::Kind::refuse, tag.line);
    if (name == "if") {
      parse_if(*made);
    } else if (name == "for") {
      parse_for(*made);
    } else if (name == "set") {
      parse_set(*made);
    } else if (name == "macro") {
      made->kind = Statement::Kind::macro;
      made->macro.name = current().text;
      made->target = parse_name_target();
      parse_macro(made->macro, true, "endmacro");
    } else if (name == "call") {
      made->kind = Statement::Kind::call_block;
      made->macro.name = "caller";
      parse_call_block(*made);
    } else if (name == "generation") {
      // What the model has written: a scope of its own, as in transformers' extension.
      made->kind = Statement::Kind::scope;
      made->body = parse_scope("endgeneration");
    } else if (name == "filter") {
      made->kind = Statement::Kind::filter_block;
      made->filter = parse_filter(nullptr);
      while (is_symbol("|")) {
        take();
        made->filter = parse_filter(std::move(made->filter));
      }
      made->body = parse_scope("endfilter");
    } else if (name == "with") {
      parse_with(*made);
    } else if (name == "print") {
      made->kind = Statement::Kind::output;
      while (current().kind != Kind::block_end) {
        if (!made->expressions.empty()) expect_symbol(",");
        made->expressions.push_back(parse_expression());
      }
    } else if (name == "break" || name == "continue") {
      if (loop_depth_ == 0) fail(fmt::format("'{}' outside loop", name), tag.line);
      made->kind = name == "break" ? Statement::Kind::break_loop : Statement::Kind::continue_loop;
    } else if (name == "block") {
      made->kind = Statement::Kind::scope;
      if (current().kind != Kind::name) expected("name");
      const std::string block_name = take().text;
      skip_name("scoped");
      skip_name("required");
      made->body = parse_scope("endblock");
      skip_name(block_name);
    } else if (name == "autoescape") {
      const ExpressionPtr on = parse_expression();
      const bool off = on->kind == Expression::Kind::constant && !truth(on->value);
      made->body = parse_scope("endautoescape");
      made->kind = off ? Statement::Kind::scope : Statement::Kind::refuse;
      made->text = "autoescape is not supported: chats are not HTML";
    } else if (name == "include" || name == "import" || name == "from" || name == "extends") {
      while (current().kind != Kind::block_end && current().kind != Kind::end) take();
      made->text = fmt::format("'{}' would read another template, and there is none", name);
    } else {
      fail(
          fmt::format("Encountered unknown tag {}.{}", repr(name),
                      ends.empty() ? ""
                                   : fmt::format(" Jinja was looking for the following tags: '{}'.",
                                                 fmt::join(ends, "' or '"))),
          tag.line);
    }
    return made;
  }

  // A body with a frame of its own, and its end tag.
  Block parse_scope(std::string_view end) {
    const Soft hard(*this, false);
    const int loops = std::exchange(loop_depth_, 0);
    Block body = parse_body({end});
    take();
    loop_depth_ = loops;
    return body;
  }

  void parse_if(Statement& made) {
    const Soft soft(*this, true);
    made.kind = Statement::Kind::branch;
    std::string tag = "if";
    while (tag == "if" || tag == "elif") {
      ExpressionPtr condition = parse_tuple(false);
      Block body = parse_body({"elif", "else", "endif"});
      made.branches.emplace_back(std::move(condition), std::move(body));
      tag = take().text;
    }
    if (tag == "else") {
      made.otherwise = parse_body({"endif"});
      take();
    }
  }

  void parse_for(Statement& made) {
    made.kind = Statement::Kind::loop;
    made.target = parse_target(false, {"in"});
    expect_name("in");
    made.expression = parse_tuple(false, {"recursive"});
    const Soft hard(*this, false);
    if (skip_name("if")) made.condition = parse_expression();
    made.recursive = skip_name("recursive");
    ++loop_depth_;
    made.body = parse_body({"endfor", "else"});
    --loop_depth_;
    if (take().text == "else") {
      made.otherwise = parse_body({"endfor"});
      take();
    }
  }

  void parse_set(Statement& made) {
    made.target = parse_target(true, {});
    if (skip_symbol("=")) {
      made.kind = Statement::Kind::assign;
      made.expression = parse_tuple(true);
      return;
    }
    made.kind = Statement::Kind::assign_block;
    while (is_symbol("|")) {
      take();
      made.filter = parse_filter(std::move(made.filter));
    }
    made.body = parse_scope("endset");
  }

  void parse_with(Statement& made) {
    made.kind = Statement::Kind::with;
    while (current().kind != Kind::block_end) {
      if (!made.targets.empty()) expect_symbol(",");
      made.targets.push_back(parse_target(false, {}));
      expect_symbol("=");
      made.expressions.push_back(parse_expression());
    }
    made.body = parse_scope("endwith");
  }

  void parse_macro(MacroSyntax& macro, bool signature, std::string_view end) {
    open_macros_.push_back(&macro);
    if (signature) {
      const Soft hard(*this, false);
      expect_symbol("(");
      while (!is_symbol(")")) {
        if (!macro.parameters.empty()) expect_symbol(",");
        const std::string name = current().text;
        const ExpressionPtr target = parse_name_target();
        macro.parameters.emplace_back(target->symbol, name);
        if (skip_symbol("=")) {
          macro.defaults.push_back(parse_expression());
        } else if (!macro.defaults.empty()) {
          fail("non-default argument follows default argument");
        }
      }
      expect_symbol(")");
    }
    if (!end.empty()) macro.body = parse_scope(end);
    open_macros_.pop_back();
  }

  void parse_call_block(Statement& made) {
    parse_macro(made.macro, is_symbol("("), "");
    const int line = current().line;
    made.expression = parse_expression();
    if (made.expression->kind != Expression::Kind::call) fail("expected call", line);
    open_macros_.push_back(&made.macro);
    made.macro.body = parse_scope("endcall");
    open_macros_.pop_back();
  }

  // -- targets of assignments

  ExpressionPtr parse_name_target() {
    const Token& token = expect(Kind::name, "name");
    ExpressionPtr node = make(Expression::Kind::name, token.line);
    node->symbol = symbols_.number(token.text);
    node->text = token.text;
    check_target(*node);
    return node;
  }

  ExpressionPtr parse_target(bool with_namespace, const Names& ends) {
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

  ExpressionPtr parse_one_target(bool with_namespace) {
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

  void check_target(const Expression& node) const {
    constexpr std::array<std::string_view, 6> kFixed = {"true", "false", "none",
                                                        "True", "False", "None"};
    if (std::find(kFixed.begin(), kFixed.end(), node.text) != kFixed.end()) {
      fail("can't assign to 'const'", node.line);
    }
  }

  // -- expressions

  bool ends_tuple(const Names& ends) const {
    return current().kind == Kind::variable_end || current().kind == Kind::block_end ||
           is_symbol(")") ||
           (current().kind == Kind::name &&
            std::find(ends.begin(), ends.end(), current().text) != ends.end());
  }

  // Expressions with commas between them are a tuple.
  ExpressionPtr parse_tuple(bool conditional, const Names& ends = {}, bool in_parentheses = false) {
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

  ExpressionPtr parse_expression() {
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

  ExpressionPtr parse_or() {
    ExpressionPtr left = parse_and();
    while (is_name("or")) {
      const int line = take().line;
      left = make(Expression::Kind::logical_or, line, std::move(left), parse_and());
    }
    return left;
  }

  ExpressionPtr parse_and() {
    ExpressionPtr left = parse_not();
    while (is_name("and")) {
      const int line = take().line;
      left = make(Expression::Kind::logical_and, line, std::move(left), parse_not());
    }
    return left;
  }

  ExpressionPtr parse_not() {
    if (!is_name("not")) return parse_compare();
    const Deeper deeper(*this, expression_depth_, kMaxExpressionDepth);
    const int line = take().line;
    return make(Expression::Kind::logical_not, line, parse_not());
  }

  ExpressionPtr parse_compare() {
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

  using Step = ExpressionPtr (Parser::*)();

  ExpressionPtr parse_binary(Step operand, std::initializer_list<std::string_view> symbols) {
    ExpressionPtr left = (this->*operand)();
    while (current().kind == Kind::symbol &&
           std::find(symbols.begin(), symbols.end(), current().text) != symbols.end()) {
      const Token& symbol = take();
      left = make(Expression::Kind::arithmetic, symbol.line, std::move(left), (this->*operand)());
      left->text = symbol.text;
    }
    return left;
  }

  ExpressionPtr parse_sum() { return parse_binary(&Parser::parse_concatenation, {"+", "-"}); }

  ExpressionPtr parse_concatenation() {
    ExpressionPtr first = parse_product();
    if (!is_symbol("~")) return first;
    ExpressionPtr node = make(Expression::Kind::concatenate, current().line, std::move(first));
    while (skip_symbol("~")) adopt(*node, parse_product());
    return node;
  }

  ExpressionPtr parse_product() {
    return parse_binary(&Parser::parse_power, {"*", "/", "//", "%"});
  }
  ExpressionPtr parse_power() { return parse_binary(&Parser::parse_operand, {"**"}); }
  ExpressionPtr parse_operand() { return parse_unary(true); }

  ExpressionPtr parse_unary(bool with_filter) {
    const Deeper deeper(*this, expression_depth_, kMaxExpressionDepth);
    ExpressionPtr node;
    if (is_symbol("-") || is_symbol("+")) {
      const Token& symbol = take();
      node = make(symbol.text == "-" ? Expression::Kind::negate : Expression::Kind::plus,
                  symbol.line, parse_unary(false));
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

  ExpressionPtr parse_primary() {
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

  // Items with commas between them and perhaps one behind, up to a bracket.
  template <typename Item>
  void parse_items(std::string_view close, const Expression& node, const Item& item) {
    while (!is_symbol(close)) {
      if (!node.items.empty()) expect_symbol(",");
      if (is_symbol(close)) break;
      item();
    }
    expect_symbol(close);
  }

  ExpressionPtr parse_postfix(ExpressionPtr node) {
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

  ExpressionPtr parse_subscript(ExpressionPtr node, int line) {
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

  ExpressionPtr parse_call(ExpressionPtr callee) {
    ExpressionPtr node = make(Expression::Kind::call, current().line, std::move(callee));
    parse_arguments(*node);
    return node;
  }

  void parse_arguments(Expression& node) {
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

  std::string parse_dotted_name() {
    std::string name = expect(Kind::name, "name").text;
    while (skip_symbol(".")) name += "." + expect(Kind::name, "name").text;
    return name;
  }

  // Behind the bar.
  ExpressionPtr parse_filter(ExpressionPtr operand) {
    const int line = current().line;
    ExpressionPtr node = make(Expression::Kind::filter, line, std::move(operand));
    node->text = parse_dotted_name();
    if (!soft_ && !has_filter(node->text)) {
      unknown_.emplace_back(fmt::format("No filter named {}.", repr(node->text)), line);
    }
    if (is_symbol("(")) parse_arguments(*node);
    return node;
  }

  ExpressionPtr parse_test(ExpressionPtr operand) {
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

  const std::vector<Token>& tokens_;
  Symbols& symbols_;
  size_t at_ = 0;
  int block_depth_ = 0, expression_depth_ = 0, loop_depth_ = 0;
  bool soft_ = false;
  std::vector<SyntaxFailure> unknown_;  // names of filters and tests that there are not
  std::vector<MacroSyntax*> open_macros_;
};

}  // namespace

Block parse(const std::vector<Token>& tokens, Symbols& symbols) {
  return Parser(tokens, symbols).run();
}

}  // namespace pronghorn::jinja
