// Recursive descent through statements. The grammar is Jinja2's.
#include <algorithm>

#include "formats/jinja/engine.h"
#include "formats/jinja/expression_parser.h"

namespace pronghorn::jinja {
namespace {

class Parser : private ExpressionParser {
 public:
  Parser(const std::vector<Token>& tokens, Symbols& symbols) : ExpressionParser(tokens, symbols) {}

  Block run() {
    Block block = parse_block({});
    if (!unknown_.empty()) throw unknown_.front();
    return block;
  }

 private:
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
};

}  // namespace

Block parse(const std::vector<Token>& tokens, Symbols& symbols) {
  return Parser(tokens, symbols).run();
}

}  // namespace pronghorn::jinja
