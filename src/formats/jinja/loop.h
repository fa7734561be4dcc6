// The variable `loop` of a for loop, and the items that it goes through.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "formats/jinja/engine.h"

namespace pronghorn::jinja {

class LoopState final : public Object, public std::enable_shared_from_this<LoopState> {
 public:
  using Filter = std::function<bool(const Value&)>;
  using Recursion = std::function<Value(const Value& iterable, int64_t depth)>;

  // filter: items that it does not want are passed over, each asked when its turn comes; may be
  // empty. recursion: of a recursive loop, what `loop(...)` writes.
  LoopState(std::vector<Value> items, Filter filter, Recursion recursion, int64_t level)
      : items_(std::move(items)),
        filter_(std::move(filter)),
        recursion_(std::move(recursion)),
        level_(level) {}

  // The next item, or null at the end.
  const Value* advance();
  // The loop is over: lets go of its items.
  void finish();

  std::string type_name() const override { return "LoopContext"; }
  const Value* attribute(Engine& engine, std::string_view name) override;
  bool callable() const override { return true; }
  Value call(Engine& engine, Arguments& arguments) override;

 private:
  std::optional<Value> fetch();
  bool has_next();
  int64_t length();
  // loop.changed(...): whether its arguments differ from those of the last call.
  Value changed_function();

  std::vector<Value> items_;
  Filter filter_;
  Recursion recursion_;
  int64_t level_, index_ = -1;
  size_t next_ = 0;
  std::optional<Value> ahead_;
  std::optional<int64_t> length_;
  Value before_, current_, last_changed_, answer_;
};

}  // namespace pronghorn::jinja
