// Runs what a template parsed to.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "formats/jinja/engine.h"
#include "formats/jinja/syntax.h"

namespace pronghorn::jinja {

// Variables of one frame; others are looked for in the frames around it.
struct Scope {
  explicit Scope(std::shared_ptr<Scope> around) : parent(std::move(around)) {}
  std::shared_ptr<Scope> parent;
  std::vector<std::pair<int, Value>> values;

  void set(int symbol, Value value);
  const Value* find(int symbol) const;
};
using ScopePtr = std::shared_ptr<Scope>;

class Interpreter final : public Engine {
 public:
  Interpreter(const Symbols& symbols, const JinjaLimits& limits, std::time_t time)
      : Engine(limits, time), symbols_(symbols) {}
  ~Interpreter();

  // Throws Failure; line() is then where.
  std::string run(const Block& block, const nlohmann::ordered_json& context);
  int line() const { return line_; }

  // For macros: binds the arguments, runs the body in a frame inside `scope`, returns its text.
  Value call_macro(const MacroSyntax& macro, const ScopePtr& scope, Arguments& arguments);
  // For recursive loops: the text of the loop over `iterable`.
  Value recurse(const Statement& loop, const ScopePtr& scope, const Value& iterable, int64_t depth);

 private:
  enum class Flow : uint8_t { normal, break_loop, continue_loop };

  Flow execute(const Block& block, const ScopePtr& scope);
  Flow execute(const Statement& statement, const ScopePtr& scope);
  Flow run_branch(const Statement& statement, const ScopePtr& scope);
  void run_loop(const Statement& statement, const ScopePtr& scope, const Value& iterable,
                int64_t depth);
  void run_call_block(const Statement& statement, const ScopePtr& scope);
  // The text that a block writes, in a frame of its own.
  std::string capture(const Block& block, const ScopePtr& scope);
  Value make_macro(const MacroSyntax& macro, const ScopePtr& scope);
  void assign(const Expression& target, const Value& value, const ScopePtr& scope);
  void write(std::string_view text);

  Value evaluate(const Expression& node, const ScopePtr& scope);
  Value evaluate_call(const Expression& node, const ScopePtr& scope, const Value* caller);
  Value evaluate_filter(const Expression& node, const ScopePtr& scope, const Value* block);
  Value evaluate_compare(const Expression& node, const ScopePtr& scope);
  Arguments evaluate_arguments(const CallArguments& arguments, const ScopePtr& scope);

  const Symbols& symbols_;
  int line_ = 1;
  std::string* out_ = nullptr;
};

}  // namespace pronghorn::jinja
