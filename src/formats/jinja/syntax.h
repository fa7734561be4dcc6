// What a template parses to.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "formats/jinja/lexer.h"
#include "formats/jinja/value.h"

namespace pronghorn::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct CallArguments {
  std::vector<ExpressionPtr> list;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr more_list, more_named;  // *list, **dictionary
};

struct Expression {
  enum class Kind : uint8_t {
    constant,     // value
    name,         // symbol
    list,         // items
    tuple,        // items
    dict,         // items: key, value, key, value...
    attribute,    // items[0].text
    item,         // items[0][items[1]]
    slice,        // items[0][items[1]:items[2]:items[3]], each but the first may be null
    call,         // items[0](arguments)
    filter,       // items[0] | text(arguments); null: of a block
    test,         // items[0] is text(arguments)
    negate,       // -items[0]
    plus,         // +items[0]
    logical_not,  // not items[0]
    logical_and,
    logical_or,
    conditional,          // items[0] if items[1] else items[2], which may be null
    arithmetic,           // items[0] text items[1]
    concatenate,          // items with ~ between them
    compare,              // items[0] operators[0] items[1] operators[1] items[2] ...
    namespace_attribute,  // symbol.text, only as a target
  };
  Kind kind;
  int line = 1;
  int depth = 1;  // of expressions in one another
  int symbol = -1;
  Value value = {};
  std::string text = {};
  std::vector<ExpressionPtr> items = {};
  std::vector<std::string> operators = {};
  CallArguments arguments = {};
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

// Of a macro, a call block, and a `generation` block.
struct MacroSyntax {
  std::string name;
  std::vector<std::pair<int, std::string>> parameters;  // symbol and name
  std::vector<ExpressionPtr> defaults;                  // of the last parameters
  Block body;
  bool uses_caller = false, uses_varargs = false, uses_kwargs = false;
};

struct Statement {
  enum class Kind : uint8_t {
    data,          // text
    output,        // expressions
    branch,        // branches; otherwise
    loop,          // for target in expression if condition: body; otherwise
    assign,        // target = expression
    assign_block,  // target = body, through filter
    macro,         // target = macro
    call_block,    // expression is a call; macro
    filter_block,  // body through filter
    with,          // targets = expressions: body
    scope,         // body with names of its own
    break_loop,
    continue_loop,
    refuse,  // text: why this is not done
  };
  Kind kind;
  int line = 1;
  std::string text = {};
  ExpressionPtr target = {}, expression = {}, condition = {}, filter = {};
  std::vector<ExpressionPtr> targets = {}, expressions = {};
  std::vector<std::pair<ExpressionPtr, Block>> branches = {};
  Block body = {}, otherwise = {};
  bool recursive = false;
  MacroSyntax macro = {};
};

// Names as numbers.
class Symbols {
 public:
  int number(const std::string& name) {
    const auto [found, fresh] = numbers_.try_emplace(name, static_cast<int>(names_.size()));
    if (fresh) names_.push_back(name);
    return found->second;
  }
  // -1: the template does not speak of it.
  int find(const std::string& name) const {
    const auto found = numbers_.find(name);
    return found == numbers_.end() ? -1 : found->second;
  }
  const std::string& name(int number) const { return names_[static_cast<size_t>(number)]; }

 private:
  std::unordered_map<std::string, int> numbers_;
  std::vector<std::string> names_;
};

// Throws SyntaxFailure.
Block parse(const std::vector<Token>& tokens, Symbols& symbols);

}  // namespace pronghorn::jinja
