#include "formats/jinja/loop.h"

namespace pronghorn::jinja {

std::optional<Value> LoopState::fetch() {
  while (next_ < items_.size()) {
    const Value& item = items_[next_++];
    if (filter_ == nullptr || filter_(item)) return item;
  }
  return {};
}

bool LoopState::has_next() {
  if (!ahead_) ahead_ = fetch();
  return ahead_.has_value();
}

const Value* LoopState::advance() {
  if (!has_next()) return nullptr;
  before_ = current_;
  current_ = std::move(*ahead_);
  ahead_.reset();
  ++index_;
  return &current_;
}

void LoopState::finish() {
  length_ = index_ + 1;
  items_.clear();
  next_ = 0;
  filter_ = nullptr;
  recursion_ = nullptr;
  ahead_.reset();
  before_ = current_ = last_changed_ = answer_ = Value();
}

int64_t LoopState::length() {
  if (!length_) {
    std::vector<Value> rest;
    while (std::optional<Value> item = fetch()) rest.push_back(std::move(*item));
    length_ = index_ + 1 + (ahead_ ? 1 : 0) + static_cast<int64_t>(rest.size());
    items_ = std::move(rest);
    next_ = 0;
    filter_ = nullptr;
  }
  return *length_;
}

const Value* LoopState::attribute(Engine&, std::string_view name) {
  if (name == "index") {
    answer_ = index_ + 1;
  } else if (name == "index0") {
    answer_ = index_;
  } else if (name == "revindex") {
    answer_ = length() - index_;
  } else if (name == "revindex0") {
    answer_ = length() - index_ - 1;
  } else if (name == "length") {
    answer_ = length();
  } else if (name == "first") {
    answer_ = index_ == 0;
  } else if (name == "last") {
    answer_ = !has_next();
  } else if (name == "depth") {
    answer_ = level_ + 1;
  } else if (name == "depth0") {
    answer_ = level_;
  } else if (name == "previtem") {
    answer_ = index_ == 0 ? Value::undefined("there is no previous item") : before_;
  } else if (name == "nextitem") {
    answer_ = has_next() ? *ahead_ : Value::undefined("there is no next item");
  } else if (name == "cycle") {
    answer_ = make_function("cycle", [at = index_](Engine&, Arguments& arguments) {
      if (arguments.list.empty()) throw Failure("no items for cycling given");
      return arguments.list[static_cast<size_t>(at) % arguments.list.size()];
    });
  } else if (name == "changed") {
    answer_ = changed_function();
  } else {
    return nullptr;
  }
  return &answer_;
}

Value LoopState::changed_function() {
  return make_function("changed", [loop = weak_from_this()](Engine& engine, Arguments& arguments) {
    const std::shared_ptr<LoopState> self = loop.lock();
    const Value values = make_list(engine.budget, arguments.list, List::Type::tuple);
    if (self == nullptr || equal(engine.budget, self->last_changed_, values)) return Value(false);
    self->last_changed_ = values;
    return Value(true);
  });
}

Value LoopState::call(Engine&, Arguments& arguments) {
  if (recursion_ == nullptr) {
    throw Failure("The loop must have the 'recursive' marker to be called recursively.");
  }
  const auto given = bind_arguments("loop", "iterable", 1, arguments);
  return recursion_(*given[0], level_ + 1);
}

}  // namespace pronghorn::jinja
