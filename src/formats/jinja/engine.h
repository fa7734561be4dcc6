// What functions, filters and methods need of the rendering that they belong to.
#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "formats/jinja/value.h"

namespace pronghorn::jinja {

class Engine {
 public:
  Engine(const JinjaLimits& limits, std::time_t time) : budget(limits), now(time) {}

  // One level deeper, until it is destroyed. Throws Failure when that is too deep.
  class Level {
   public:
    explicit Level(Engine& engine) : engine_(engine) {
      if (++engine_.depth_ > engine_.budget.max_depth()) {
        --engine_.depth_;  // the destructor does not run
        throw Failure("expressions, blocks or macros are nested too deep");
      }
    }
    ~Level() { --engine_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    Engine& engine_;
  };

  Budget budget;
  std::time_t now;
  // Called at the end: breaks what refers to itself (a namespace that holds itself).
  std::vector<std::function<void()>> at_end;

 private:
  friend class Level;
  int64_t depth_ = 0;
};

// A function that a template can call. holds: what it holds on to. Throws Failure where that is
// nested too deep.
using Function = std::function<Value(Engine&, Arguments&)>;
Value make_function(std::string name, Function function, const Value& holds = {});

// namespace(...): the only value that templates can change. The caller's `at_end` empties it.
class Namespace final : public Object {
 public:
  std::string type_name() const override { return "Namespace"; }
  const Value* attribute(Engine&, std::string_view name) override;
  // Throws Failure for names that begin with an underscore.
  void set(const std::string& name, Value value);
  void clear() { attributes_.clear(); }

 private:
  std::vector<std::pair<std::string, Value>> attributes_;
};

// range, dict, cycler, joiner, namespace, raise_exception, strftime_now: name and value.
std::vector<std::pair<std::string, Value>> global_variables();

bool has_filter(std::string_view name);
bool has_test(std::string_view name);
// Throw Failure for names that there are not, for wrong arguments, and what the filter or test
// throws.
Value call_filter(Engine& engine, std::string_view name, const Value& value, Arguments& arguments);
bool call_test(Engine& engine, std::string_view name, const Value& value, Arguments& arguments);
// A method of a string, list, tuple or dictionary, or nothing. Those that would change it are
// undefined with a message.
std::optional<Value> method_of(const Value& value, std::string_view name);

// Binds arguments to the parameters of a function, given as "old new count"; the first `required`
// must be there. Null where nothing was given.
std::vector<const Value*> bind_arguments(std::string_view function, std::string_view parameters,
                                         size_t required, const Arguments& arguments);

// left % right of strings, and str.format().
std::string format_percent(Engine& engine, std::string_view format, const Value& values);
std::string format_braces(Engine& engine, std::string_view format, const Arguments& arguments);

// a + b and the like, `symbol` being the operator.
Value add(Engine& engine, const Value& a, const Value& b);
Value arithmetic(Engine& engine, std::string_view symbol, const Value& a, const Value& b);
Value negative(const Value& value);

}  // namespace pronghorn::jinja
