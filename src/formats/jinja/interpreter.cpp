#include "formats/jinja/interpreter.h"

#include <algorithm>

#include "formats/jinja/loop.h"

namespace pronghorn::jinja {
namespace {

class Macro final : public Object {
 public:
  Macro(Interpreter& interpreter, const MacroSyntax& syntax, ScopePtr scope)
      : interpreter_(interpreter), syntax_(syntax), scope_(std::move(scope)) {}
  std::string type_name() const override { return "Macro"; }
  std::string repr() const override { return "<Macro " + jinja::repr(syntax_.name) + ">"; }
  bool callable() const override { return true; }
  const Value* attribute(Engine&, std::string_view name) override {
    if (name != "name") return nullptr;
    name_ = Value(syntax_.name);
    return &name_;
  }
  Value call(Engine&, Arguments& arguments) override {
    return interpreter_.call_macro(syntax_, scope_, arguments);
  }

 private:
  Interpreter& interpreter_;
  const MacroSyntax& syntax_;
  ScopePtr scope_;
  Value name_;
};

}  // namespace

void Scope::set(int symbol, Value value) {
  for (auto& [own, held] : values) {
    if (own == symbol) {
      held = std::move(value);
      return;
    }
  }
  values.emplace_back(symbol, std::move(value));
}

const Value* Scope::find(int symbol) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent.get()) {
    for (const auto& [own, value] : scope->values) {
      if (own == symbol) return &value;
    }
  }
  return nullptr;
}

Interpreter::~Interpreter() {
  for (const auto& clean : at_end) clean();
}

std::string Interpreter::run(const Block& block, const nlohmann::ordered_json& context) {
  const auto around = std::make_shared<Scope>(nullptr);
  for (auto& [name, value] : global_variables()) {
    if (const int symbol = symbols_.find(name); symbol >= 0) around->set(symbol, value);
  }
  for (const auto& [name, value] : context.items()) {
    if (const int symbol = symbols_.find(name); symbol >= 0) {
      around->set(symbol, from_json(budget, value));
    }
  }
  const auto top = std::make_shared<Scope>(around);
  std::string out;
  out_ = &out;
  execute(block, top);
  return out;
}

void Interpreter::write(std::string_view text) {
  budget.bytes(text.size());
  *out_ += text;
}

// -- statements

Interpreter::Flow Interpreter::execute(const Block& block, const ScopePtr& scope) {
  for (const auto& statement : block) {
    const Flow flow = execute(*statement, scope);
    if (flow != Flow::normal) return flow;
  }
  return Flow::normal;
}

Interpreter::Flow Interpreter::execute(const Statement& statement, const ScopePtr& scope) {
  using Kind = Statement::Kind;
  const Level level(*this);
  budget.step();
  line_ = statement.line;
  switch (statement.kind) {
    case Kind::data:
      write(statement.text);
      break;
    case Kind::output:
      for (const ExpressionPtr& expression : statement.expressions) {
        const Value value = evaluate(*expression, scope);
        if (value.text() != nullptr) {
          write(value.text()->bytes);
        } else {
          write(to_text(budget, value));
        }
      }
      break;
    case Kind::branch:
      return run_branch(statement, scope);
    case Kind::loop:
      run_loop(statement, scope, evaluate(*statement.expression, scope), 0);
      break;
    case Kind::assign:
      assign(*statement.target, evaluate(*statement.expression, scope), scope);
      break;
    case Kind::assign_block: {
      Value text(capture(statement.body, scope));
      if (statement.filter != nullptr) text = evaluate_filter(*statement.filter, scope, &text);
      assign(*statement.target, text, scope);
      break;
    }
    case Kind::macro:
      assign(*statement.target, make_macro(statement.macro, scope), scope);
      break;
    case Kind::call_block:
      run_call_block(statement, scope);
      break;
    case Kind::filter_block: {
      const Value text(capture(statement.body, scope));
      write(to_text(budget, evaluate_filter(*statement.filter, scope, &text)));
      break;
    }
    case Kind::with: {
      const auto inner = std::make_shared<Scope>(scope);
      std::vector<Value> values;
      for (const ExpressionPtr& expression : statement.expressions) {
        values.push_back(evaluate(*expression, scope));
      }
      for (size_t i = 0; i < values.size(); ++i) assign(*statement.targets[i], values[i], inner);
      return execute(statement.body, inner);
    }
    case Kind::scope:
      return execute(statement.body, std::make_shared<Scope>(scope));
    case Kind::break_loop:
      return Flow::break_loop;
    case Kind::continue_loop:
      return Flow::continue_loop;
    case Kind::refuse:
      throw Failure(statement.text);
  }
  return Flow::normal;
}

Interpreter::Flow Interpreter::run_branch(const Statement& statement, const ScopePtr& scope) {
  for (const auto& [condition, body] : statement.branches) {
    if (truth(evaluate(*condition, scope))) return execute(body, scope);
  }
  return execute(statement.otherwise, scope);
}

void Interpreter::run_loop(const Statement& statement, const ScopePtr& scope, const Value& iterable,
                           int64_t depth) {
  LoopState::Filter filter;
  if (statement.condition != nullptr) {
    filter = [&](const Value& item) {
      const auto inner = std::make_shared<Scope>(scope);
      assign(*statement.target, item, inner);
      return truth(evaluate(*statement.condition, inner));
    };
  }
  LoopState::Recursion recursion;
  if (statement.recursive) {
    recursion = [this, &statement, scope](const Value& inner, int64_t deeper) {
      return recurse(statement, scope, inner, deeper);
    };
  }
  const auto loop = std::make_shared<LoopState>(items_of(*this, iterable), std::move(filter),
                                                std::move(recursion), depth);
  const Value loop_value{Value::Data(std::shared_ptr<Object>(loop))};
  const int loop_symbol = symbols_.find("loop");
  struct Finish {
    LoopState& loop;
    ~Finish() { loop.finish(); }
  } const finish{*loop};

  bool any = false;
  while (const Value* item = loop->advance()) {
    any = true;
    budget.step();
    const auto inner = std::make_shared<Scope>(scope);
    if (loop_symbol >= 0) inner->set(loop_symbol, loop_value);
    assign(*statement.target, Value(*item), inner);
    if (execute(statement.body, inner) == Flow::break_loop) break;
  }
  if (!any) execute(statement.otherwise, std::make_shared<Scope>(scope));
}

Value Interpreter::recurse(const Statement& loop, const ScopePtr& scope, const Value& iterable,
                           int64_t depth) {
  const Level level(*this);
  std::string text;
  std::string* const before = std::exchange(out_, &text);
  try {
    run_loop(loop, scope, iterable, depth);
  } catch (...) {
    out_ = before;
    throw;
  }
  out_ = before;
  return Value(std::move(text));
}

std::string Interpreter::capture(const Block& block, const ScopePtr& scope) {
  std::string text;
  std::string* const before = std::exchange(out_, &text);
  try {
    execute(block, std::make_shared<Scope>(scope));
  } catch (...) {
    out_ = before;
    throw;
  }
  out_ = before;
  return text;
}

Value Interpreter::make_macro(const MacroSyntax& macro, const ScopePtr& scope) {
  budget.bytes(sizeof(Macro));
  // A frame that holds a macro that holds the frame.
  at_end.emplace_back([scope] { scope->values.clear(); });
  return Value::Data(std::shared_ptr<Object>(std::make_shared<Macro>(*this, macro, scope)));
}

void Interpreter::run_call_block(const Statement& statement, const ScopePtr& scope) {
  const Value caller = make_macro(statement.macro, scope);
  write(to_text(budget, evaluate_call(*statement.expression, scope, &caller)));
}

Value Interpreter::call_macro(const MacroSyntax& macro, const ScopePtr& scope,
                              Arguments& arguments) {
  const Level level(*this);
  const auto frame = std::make_shared<Scope>(scope);
  auto& named = arguments.named;
  const auto take = [&](std::string_view name) -> std::optional<Value> {
    const auto found = std::find_if(named.begin(), named.end(),
                                    [&](const auto& item) { return item.first == name; });
    if (found == named.end()) return {};
    Value value = found->second;
    named.erase(found);
    return value;
  };
  const size_t count = macro.parameters.size();
  const size_t first_default = count - macro.defaults.size();
  std::vector<size_t> missing;
  for (size_t i = 0; i < count; ++i) {
    const auto& [symbol, name] = macro.parameters[i];
    std::optional<Value> value;
    if (i < arguments.list.size()) {
      value = arguments.list[i];
    } else {
      value = take(name);
    }
    if (value) {
      frame->set(symbol, *value);
    } else if (i >= first_default) {
      missing.push_back(i);
    } else {
      frame->set(symbol,
                 Value::undefined(fmt::format("parameter {} was not provided", repr(name))));
    }
  }
  const bool has_caller_parameter =
      std::any_of(macro.parameters.begin(), macro.parameters.end(),
                  [](const auto& parameter) { return parameter.second == "caller"; });
  if (macro.uses_caller && !has_caller_parameter) {
    const std::optional<Value> caller = take("caller");
    frame->set(symbols_.find("caller"), caller ? *caller : Value::undefined("No caller defined"));
  }
  if (macro.uses_kwargs) {
    Dict dict;
    for (const auto& [name, value] : named) dict.set(budget, Value(name), value);
    frame->set(symbols_.find("kwargs"), make_dict(budget, std::move(dict)));
  } else if (!named.empty()) {
    throw Failure(fmt::format("macro {} takes no keyword argument {}", repr(macro.name),
                              repr(named.front().first)));
  }
  if (macro.uses_varargs) {
    const auto rest = arguments.list.begin() +
                      static_cast<std::ptrdiff_t>(std::min(count, arguments.list.size()));
    frame->set(symbols_.find("varargs"),
               make_list(budget, {rest, arguments.list.end()}, List::Type::tuple));
  } else if (arguments.list.size() > count) {
    throw Failure(
        fmt::format("macro {} takes not more than {} argument(s)", repr(macro.name), count));
  }
  for (const size_t i : missing) {
    frame->set(macro.parameters[i].first, evaluate(*macro.defaults[i - first_default], frame));
  }
  std::string text;
  std::string* const before = std::exchange(out_, &text);
  try {
    execute(macro.body, frame);
  } catch (...) {
    out_ = before;
    throw;
  }
  out_ = before;
  return Value(std::move(text));
}

void Interpreter::assign(const Expression& target, const Value& value, const ScopePtr& scope) {
  if (target.kind == Expression::Kind::name) return scope->set(target.symbol, value);
  if (target.kind == Expression::Kind::namespace_attribute) {
    const Value* held = scope->find(target.symbol);
    auto* space = held == nullptr ? nullptr : dynamic_cast<Namespace*>(held->object());
    if (space == nullptr) throw Failure("cannot assign attribute on non-namespace object");
    budget.bytes(sizeof(Value));
    return space->set(target.text, value);
  }
  value.must_be_defined();
  const std::vector<Value> items = items_of(*this, value);
  if (items.size() < target.items.size()) {
    throw Failure(fmt::format("not enough values to unpack (expected {}, got {})",
                              target.items.size(), items.size()));
  }
  if (items.size() > target.items.size()) {
    throw Failure(fmt::format("too many values to unpack (expected {})", target.items.size()));
  }
  for (size_t i = 0; i < items.size(); ++i) assign(*target.items[i], items[i], scope);
}

}  // namespace pronghorn::jinja
