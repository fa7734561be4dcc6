// Functions that every template can call, and how arguments meet parameters.
#include <algorithm>
#include <array>
#include <cstdlib>

#include "formats/jinja/engine.h"

namespace pronghorn::jinja {
namespace {

class NativeFunction final : public Object {
 public:
  NativeFunction(std::string name, Function function, int held_depth)
      : Object(held_depth), name_(std::move(name)), function_(std::move(function)) {}
  std::string type_name() const override { return "function"; }
  std::string repr() const override { return "<function " + name_ + ">"; }
  bool callable() const override { return true; }
  Value call(Engine& engine, Arguments& arguments) override { return function_(engine, arguments); }

 private:
  std::string name_;
  Function function_;
};

int64_t range_number(const Value& value) {
  value.must_be_defined();
  const auto number = whole(value);
  if (!number) {
    throw Failure(fmt::format("'{}' object cannot be interpreted as an integer", type_name(value)));
  }
  return *number;
}

Value range(Engine& engine, Arguments& arguments) {
  constexpr __int128 kLongest = 100'000;  // as the sandbox of Jinja2
  const std::vector<Value>& given = arguments.list;
  if (given.empty() || given.size() > 3 || !arguments.named.empty()) {
    throw Failure("range takes one to three numbers");
  }
  const int64_t start = given.size() > 1 ? range_number(given[0]) : 0;
  const int64_t stop = range_number(given[given.size() > 1 ? 1 : 0]);
  const int64_t step = given.size() > 2 ? range_number(given[2]) : 1;
  if (step == 0) throw Failure("range() arg 3 must not be zero");
  const __int128 distance =
      step > 0 ? static_cast<__int128>(stop) - start : static_cast<__int128>(start) - stop;
  const __int128 size = step > 0 ? static_cast<__int128>(step) : -static_cast<__int128>(step);
  const __int128 count = distance <= 0 ? 0 : (distance + size - 1) / size;
  if (count > kLongest) {
    throw Failure("Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
  }
  std::vector<Value> items;
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) items.emplace_back(start + i * step);
  return make_list(engine.budget, std::move(items), List::Type::range);
}

Dict dict_from(Engine& engine, const Arguments& arguments) {
  Dict dict;
  if (arguments.list.size() > 1) {
    throw Failure(fmt::format("dict expected at most 1 argument, got {}", arguments.list.size()));
  }
  if (!arguments.list.empty()) {
    if (const Dict* other = arguments.list[0].dict()) {
      for (const auto& [key, value] : other->items) dict.set(engine.budget, key, value);
    } else {
      for (const Value& item : items_of(engine, arguments.list[0])) {
        const std::vector<Value> pair = items_of(engine, item);
        if (pair.size() != 2) throw Failure("dictionary update sequence needs pairs");
        dict.set(engine.budget, pair[0], pair[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) dict.set(engine.budget, Value(name), value);
  return dict;
}

// dict(...), and dict.fromkeys(...).
class DictMaker final : public Object {
 public:
  std::string type_name() const override { return "TemplateDict"; }
  bool callable() const override { return true; }
  Value call(Engine& engine, Arguments& arguments) override {
    return make_dict(engine.budget, dict_from(engine, arguments));
  }
  const Value* attribute(Engine&, std::string_view name) override {
    return name == "fromkeys" ? &from_keys_ : nullptr;
  }

 private:
  Value from_keys_ = make_function("fromkeys", [](Engine& engine, Arguments& arguments) {
    const auto given = bind_arguments("fromkeys", "iterable value", 1, arguments);
    Dict dict;
    for (const Value& key : items_of(engine, *given[0])) {
      dict.set(engine.budget, key, given[1] == nullptr ? Value::none() : *given[1]);
    }
    return make_dict(engine.budget, std::move(dict));
  });
};

Value make_namespace(Engine& engine, Arguments& arguments) {
  auto made = std::make_shared<Namespace>();
  for (const auto& [key, value] : dict_from(engine, arguments).items) {
    made->set(to_text(engine.budget, key), value);
  }
  engine.budget.bytes(sizeof(Namespace));
  engine.at_end.emplace_back([made] { made->clear(); });
  return Value::Data(std::shared_ptr<Object>(made));
}

class Cycler final : public Object {
 public:
  Cycler(std::vector<Value> items, int held_depth) : Object(held_depth), items_(std::move(items)) {}
  std::string type_name() const override { return "Cycler"; }
  const Value* attribute(Engine&, std::string_view name) override {
    if (name == "current") return &items_[at_];
    // Functions that live no longer than the call that the template makes of them.
    if (name == "next") {
      return &(method_ = make_function("next", [this](Engine&, Arguments&) {
                 const Value item = items_[at_];
                 at_ = (at_ + 1) % items_.size();
                 return item;
               }));
    }
    if (name == "reset") {
      return &(method_ = make_function("reset", [this](Engine&, Arguments&) {
                 at_ = 0;
                 return Value::none();
               }));
    }
    return nullptr;
  }

 private:
  std::vector<Value> items_;
  size_t at_ = 0;
  Value method_;
};

Value make_cycler(Engine& engine, Arguments& arguments) {
  if (arguments.list.empty()) throw Failure("at least one item has to be provided");
  engine.budget.bytes(sizeof(Cycler));
  const Value items = make_list(engine.budget, std::move(arguments.list));
  auto made = std::make_shared<Cycler>(items.list()->items, depth_of(items));
  engine.at_end.emplace_back([made] {});  // its functions refer to it
  return Value::Data(std::shared_ptr<Object>(made));
}

Value make_joiner(Engine&, Arguments& arguments) {
  const auto given = bind_arguments("joiner", "sep", 0, arguments);
  const Value separator = given[0] == nullptr ? Value(std::string(", ")) : *given[0];
  return make_function(
      "joiner",
      [separator, used = std::make_shared<bool>(false)](Engine&, Arguments&) {
        if (*used) return separator;
        *used = true;
        return Value(std::string());
      },
      separator);
}

Value raise_exception(Engine& engine, Arguments& arguments) {
  const auto given = bind_arguments("raise_exception", "message", 1, arguments);
  throw Failure(to_text(engine.budget, *given[0]), true);
}

Value strftime_now(Engine& engine, Arguments& arguments) {
  const auto given = bind_arguments("strftime_now", "format", 1, arguments);
  const std::string format = to_text(engine.budget, *given[0]);
  if (format.empty()) return Value(std::string());
  std::tm local{};
  ::localtime_r(&engine.now, &local);
  constexpr size_t kMostPerDirective = 256;
  std::vector<char> out(std::min<size_t>(format.size() * kMostPerDirective, 1 << 20));
  const size_t size = std::strftime(out.data(), out.size(), format.c_str(), &local);
  return make_text(engine.budget, std::string(out.data(), size));
}

}  // namespace

Value make_function(std::string name, Function function, const Value& holds) {
  const int held = 1 + depth_of(holds);
  if (held > kMaxDataDepth) throw Failure("functions are nested too deep");
  return Value::Data(std::shared_ptr<Object>(
      std::make_shared<NativeFunction>(std::move(name), std::move(function), held)));
}

const Value* Namespace::attribute(Engine&, std::string_view name) {
  const auto found = std::find_if(attributes_.begin(), attributes_.end(),
                                  [&](const auto& item) { return item.first == name; });
  return found == attributes_.end() ? nullptr : &found->second;
}

void Namespace::set(const std::string& name, Value value) {
  if (name.starts_with('_')) {
    throw Failure(
        fmt::format("Chat templates cannot store underscore-prefixed attributes on a "
                    "namespace, but got {}. Please rename the attribute.",
                    jinja::repr(name)));
  }
  const auto found = std::find_if(attributes_.begin(), attributes_.end(),
                                  [&](const auto& item) { return item.first == name; });
  if (found == attributes_.end()) {
    attributes_.emplace_back(name, std::move(value));
  } else {
    found->second = std::move(value);
  }
}

std::vector<std::pair<std::string, Value>> global_variables() {
  return {{"range", make_function("range", range)},
          {"dict", Value::Data(std::shared_ptr<Object>(std::make_shared<DictMaker>()))},
          {"namespace", make_function("namespace", make_namespace)},
          {"cycler", make_function("cycler", make_cycler)},
          {"joiner", make_function("joiner", make_joiner)},
          {"raise_exception", make_function("raise_exception", raise_exception)},
          {"strftime_now", make_function("strftime_now", strftime_now)}};
}

std::vector<const Value*> bind_arguments(std::string_view function, std::string_view parameters,
                                         size_t required, const Arguments& arguments) {
  std::vector<std::string_view> names;
  while (!parameters.empty()) {
    const size_t space = std::min(parameters.find(' '), parameters.size());
    names.push_back(parameters.substr(0, space));
    parameters.remove_prefix(std::min(space + 1, parameters.size()));
  }
  if (arguments.list.size() > names.size()) {
    throw Failure(fmt::format("{}() takes at most {} arguments, {} are given", function,
                              names.size(), arguments.list.size()));
  }
  // One beyond, so that a function without parameters has something to look at.
  std::vector<const Value*> given(names.size() + 1, nullptr);
  for (size_t i = 0; i < arguments.list.size(); ++i) given[i] = &arguments.list[i];
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) {
      throw Failure(fmt::format("{}() got an unexpected keyword argument '{}'", function, name));
    }
    const Value*& place = given[static_cast<size_t>(found - names.begin())];
    if (place != nullptr) {
      throw Failure(fmt::format("{}() got multiple values for argument '{}'", function, name));
    }
    place = &value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (given[i] == nullptr) {
      throw Failure(fmt::format("{}() misses its argument '{}'", function, names[i]));
    }
  }
  return given;
}

}  // namespace pronghorn::jinja
