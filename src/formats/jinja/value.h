// Values of templates: Python's, as far as templates meet them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "formats/jinja.h"

namespace pronghorn::jinja {

// What fails while a template runs; whoever runs it knows the line.
struct Failure : std::runtime_error {
  explicit Failure(const std::string& message, bool by_template = false)
      : std::runtime_error(message), raised(by_template) {}
  bool raised;
};

// Counts down what a rendering may use.
class Budget {
 public:
  explicit Budget(const JinjaLimits& limits) : limits_(limits) {}
  // Throw Failure when nothing is left.
  void step(int64_t count = 1) {
    if ((steps_ += count) > limits_.steps) exceeded("steps", limits_.steps);
  }
  void bytes(size_t count) {
    if ((bytes_ += static_cast<int64_t>(count)) > limits_.bytes) exceeded("bytes", limits_.bytes);
  }
  int64_t max_depth() const { return limits_.depth; }

 private:
  [[noreturn]] static void exceeded(std::string_view what, int64_t limit);
  JinjaLimits limits_;
  int64_t steps_ = 0, bytes_ = 0;
};

class Value;
class Engine;
class Object;

// Arguments of a call.
struct Arguments {
  std::vector<Value> list;
  std::vector<std::pair<std::string, Value>> named;
};

struct Undefined {
  std::shared_ptr<const std::string> message;  // what using it says
};
struct None {};
struct Text {
  std::string bytes;  // UTF-8
  bool safe = false;  // what the filter `safe` marks: adding to it escapes the other side for HTML
};

// A sequence. Lists and tuples never change once made.
struct List {
  enum class Type : uint8_t { list, tuple, range, keys, values, items, generator };
  Type type = Type::list;
  std::vector<Value> items;
  size_t next = 0;  // of a generator: what is left begins here
  int depth = 1;    // of lists and dictionaries in one another
};

struct Dict;

class Value {
 public:
  using Data =
      std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>,
                   std::shared_ptr<List>, std::shared_ptr<const Dict>, std::shared_ptr<Object>>;

  Value() = default;  // undefined
  Value(Data data) : data_(std::move(data)) {}
  Value(bool value) : data_(value) {}
  Value(int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  Value(std::string text, bool safe = false)
      : data_(std::make_shared<const Text>(Text{std::move(text), safe})) {}
  Value(const char*) = delete;
  static Value none() { return Data(None{}); }
  static Value undefined(std::string message) {
    return Data(Undefined{std::make_shared<const std::string>(std::move(message))});
  }

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  const bool* boolean() const { return std::get_if<bool>(&data_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&data_); }
  const double* number() const { return std::get_if<double>(&data_); }
  const Text* text() const { return pointee(std::get_if<std::shared_ptr<const Text>>(&data_)); }
  List* list() const { return pointee(std::get_if<std::shared_ptr<List>>(&data_)); }
  const Dict* dict() const { return pointee(std::get_if<std::shared_ptr<const Dict>>(&data_)); }
  Object* object() const { return pointee(std::get_if<std::shared_ptr<Object>>(&data_)); }
  // The same object in memory, as Python's `is`.
  bool same_as(const Value& other) const;
  // Throws Failure with what using an undefined value says; does nothing for others.
  void must_be_defined() const;

 private:
  template <typename Pointer>
  static auto pointee(const Pointer* pointer) -> decltype(pointer->get()) {
    return pointer == nullptr ? nullptr : pointer->get();
  }
  Data data_;
};

// Keys keep their order. Never changes once made.
struct Dict {
  std::vector<std::pair<Value, Value>> items;
  std::unordered_map<std::string_view, size_t> texts;  // places of keys that are strings
  int depth = 1;

  // Sets the value of a key; throws Failure for what cannot be a key.
  void set(Budget& budget, const Value& key, const Value& value);
  const Value* find(Budget& budget, const Value& key) const;
  const Value* find(std::string_view key) const;
};

// Everything else: namespaces, macros, functions, methods, loops.
class Object {
 public:
  // held_depth: of the values that it holds on to in one another, so that none is too deep to
  // destroy.
  explicit Object(int held_depth = 0) : depth(held_depth) {}
  virtual ~Object() = default;
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  const int depth;
  // As Python names its type.
  virtual std::string type_name() const = 0;
  virtual std::string repr() const { return fmt::format("<{}>", type_name()); }
  // An attribute, or null.
  virtual const Value* attribute(Engine&, std::string_view) { return nullptr; }
  virtual bool callable() const { return false; }
  virtual Value call(Engine&, Arguments&) { throw Failure(type_name() + " is not callable"); }
};

// Of lists, dictionaries and functions in one another.
int depth_of(const Value& value);
// Throw Failure beyond kMaxDataDepth lists and dictionaries in one another.
Value make_list(Budget& budget, std::vector<Value> items, List::Type type = List::Type::list);
Value make_dict(Budget& budget, Dict dict);
Value make_text(Budget& budget, std::string text, bool safe = false);
Value from_json(Budget& budget, const nlohmann::ordered_json& json, int depth = 0);

// As Python names the type ("str", "NoneType").
std::string type_name(const Value& value);
bool truth(const Value& value);
// str(value): what {{ value }} writes; and repr(value), as inside lists.
std::string to_text(Budget& budget, const Value& value);
std::string repr(Budget& budget, const Value& value);
std::string repr(std::string_view text);
std::string float_repr(double value);

bool equal(Budget& budget, const Value& a, const Value& b);
// Below 0, 0, above 0. Throws Failure for what has no order, saying `symbol`.
int compare(Budget& budget, const Value& a, const Value& b, std::string_view symbol);
bool contains(Engine& engine, const Value& container, const Value& item);
// An integer or boolean as a number; null for anything else.
std::optional<int64_t> whole(const Value& value);
// Any number.
std::optional<double> real(const Value& value);

// The items that iterating gives: of a list its items, of a dictionary its keys, of a string its
// characters, of nothing defined none. Uses up a generator. Throws Failure for what has none.
std::vector<Value> items_of(Engine& engine, const Value& value);
bool is_iterable(const Value& value);
// len(). Throws Failure.
int64_t length_of(const Value& value);

// a.name, and a[key], as the sandboxed environment finds them: undefined if there is none.
Value attribute_of(Engine& engine, const Value& value, const std::string& name);
Value item_of(Engine& engine, const Value& value, const Value& key);
// value[start:stop:step]; each may be none.
Value slice_of(Budget& budget, const Value& value, const Value& start, const Value& stop,
               const Value& step);

// transformers' tojson: json.dumps of Python with its defaults, but without escaping what is not
// ASCII.
struct JsonStyle {
  bool ascii = false, sort_keys = false;
  std::optional<std::string> indent;
  std::string item_separator = ", ", key_separator = ": ";
};
std::string to_json(Budget& budget, const Value& value, const JsonStyle& style);

constexpr int kMaxDataDepth = 200;

}  // namespace pronghorn::jinja
