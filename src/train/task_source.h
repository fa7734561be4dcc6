// What the synthetic tasks share: numbered examples, drawn from a stream of random numbers of their
// own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "base/random.h"
#include "train/tasks.h"

namespace pronghorn {

class TaskSource : public DataSource {
 public:
  explicit TaskSource(TaskOptions options) : options_(std::move(options)) {}
  int64_t length() const override { return options_.length; }
  int64_t vocab_size() const override { return options_.vocab_size; }

  void fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) override {
    std::fill(targets.begin(), targets.end(), -1);
    Random random(options_.seed ^ (index * 0x9E3779B97F4A7C15ull), options_.name);
    example(index, random, tokens, targets);
  }

 protected:
  virtual void example(uint64_t index, Random& random, std::span<int32_t> tokens,
                       std::span<int32_t> targets) const = 0;

  static int32_t draw(Random& random, int64_t low, int64_t high) {  // low <= result < high
    return static_cast<int32_t>(
        low + static_cast<int64_t>(random.below(static_cast<uint64_t>(high - low))));
  }

  static double one_of(int64_t answers) { return 1 / static_cast<double>(answers); }

  // `count` different numbers of [0, bound), ascending.
  static std::vector<int64_t> places(Random& random, int64_t count, int64_t bound) {
    std::set<int64_t> chosen;
    // Floyd's algorithm: exactly `count` draws.
    for (int64_t last = bound - count; last < bound; ++last) {
      const int64_t candidate = draw(random, 0, last + 1);
      if (!chosen.insert(candidate).second) chosen.insert(last);
    }
    return {chosen.begin(), chosen.end()};
  }

  TaskOptions options_;
};

// Task::complete(options) fills in its defaults and throws Error if the options cannot be met.
template <typename Task>
std::unique_ptr<DataSource> make_task_source(TaskOptions options) {
  Task::complete(options);
  return std::make_unique<Task>(std::move(options));
}

}  // namespace pronghorn
