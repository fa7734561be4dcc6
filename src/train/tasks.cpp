#include "train/tasks.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/random.h"

namespace pronghorn {
namespace {

class TaskSource : public DataSource {
 public:
  explicit TaskSource(TaskOptions options) : options_(std::move(options)) {}
  int64_t length() const override { return options_.length; }
  int64_t vocab_size() const override { return options_.vocab_size; }

  void fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) override {
    std::fill(targets.begin(), targets.end(), -1);
    Random random(options_.seed ^ (index * 0x9E3779B97F4A7C15ull), options_.name);
    example(random, tokens, targets);
  }

 protected:
  virtual void example(Random& random, std::span<int32_t> tokens,
                       std::span<int32_t> targets) const = 0;

  static int32_t draw(Random& random, int64_t low, int64_t high) {  // low <= result < high
    return static_cast<int32_t>(
        low + static_cast<int64_t>(random.below(static_cast<uint64_t>(high - low))));
  }

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

// Selective copying (arXiv 2312.00752, section 4.1.1): `items` data tokens at random places among
// noise, then as many marks, at each of which the next data token is due, in order. Token 0 is
// noise, 1 the mark, the others data.
class SelectiveCopying final : public TaskSource {
 public:
  using TaskSource::TaskSource;

  static void complete(TaskOptions& options) {
    if (options.vocab_size == 0) options.vocab_size = 16;
    if (options.items == 0) options.items = 16;
    require(options.vocab_size >= 3, "selective_copying", "needs a vocabulary of at least 3");
    require(options.length >= 2 * options.items, "selective_copying",
            "length {} is too short for {} items and as many answers", options.length,
            options.items);
  }

 protected:
  void example(Random& random, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    const int64_t content = options_.length - options_.items;
    std::fill(tokens.begin(), tokens.end(), 0);
    int64_t answer = content;
    for (const int64_t place : places(random, options_.items, content)) {
      const int32_t token = draw(random, 2, options_.vocab_size);
      tokens[static_cast<size_t>(place)] = token;
      tokens[static_cast<size_t>(answer)] = 1;
      targets[static_cast<size_t>(answer)] = token;
      ++answer;
    }
  }
};

// Induction heads (arXiv 2312.00752, section 4.1.2): random tokens, somewhere a mark and a token
// after it; the last token is the mark again, and the token that followed it is due. Token 0 is the
// mark. With more than one item the mark comes back up to so often in between, each time followed
// by the same token: more to learn from in each sequence.
class InductionHeads final : public TaskSource {
 public:
  using TaskSource::TaskSource;

  static void complete(TaskOptions& options) {
    if (options.vocab_size == 0) options.vocab_size = 16;
    if (options.items == 0) options.items = 1;
    require(options.vocab_size >= 2, "induction_heads", "needs a vocabulary of at least 2");
    require(options.length >= 2 * options.items + 1, "induction_heads",
            "length {} is too short for {} questions", options.length, options.items);
  }

 protected:
  void example(Random& random, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    for (int32_t& token : tokens) token = draw(random, 1, options_.vocab_size);
    const int32_t answer = draw(random, 1, options_.vocab_size);
    // Marks with a token after each, none overlapping: places of a shorter sequence in which a mark
    // and its token are one.
    int64_t shift = 0;
    for (const int64_t place :
         places(random, options_.items, options_.length - 1 - options_.items)) {
      const auto mark = static_cast<size_t>(place + shift);
      tokens[mark] = 0;
      tokens[mark + 1] = answer;
      if (shift > 0) targets[mark] = answer;
      ++shift;
    }
    tokens.back() = 0;
    targets.back() = answer;
  }
};

// Multi-query associative recall (Zoology, arXiv 2312.04927, section 4 and appendix): `items` pairs
// of key and value at the front, then each key once more at a gap drawn from a power law, where its
// value is due; other places hold random tokens. Keys are the lower half of the vocabulary (without
// 0), values the upper half.
class Mqar final : public TaskSource {
 public:
  using TaskSource::TaskSource;

  static void complete(TaskOptions& options) {
    if (options.vocab_size == 0) options.vocab_size = 8192;
    if (options.items == 0) options.items = std::max<int64_t>(1, options.length / 16);
    require(options.vocab_size / 2 - 1 >= options.items, "mqar",
            "a vocabulary of {} has too few keys for {} pairs", options.vocab_size, options.items);
    require(options.length >= 4 * options.items, "mqar",
            "length {} is too short for {} pairs and their queries", options.length, options.items);
  }

 protected:
  void example(Random& random, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    const int64_t pairs = options_.items, half = options_.vocab_size / 2;
    for (int32_t& token : tokens) token = draw(random, 0, options_.vocab_size);
    // Random filler must not look like a key that was given a value.
    const std::vector<int64_t> keys = places(random, pairs, half - 1);
    std::vector<int64_t> order = keys;
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
    for (size_t i = static_cast<size_t>(2 * pairs); i < tokens.size(); ++i) {
      while (std::binary_search(keys.begin(), keys.end(), tokens[i] - 1)) {
        tokens[i] = draw(random, 0, options_.vocab_size);
      }
    }
    // Queries stand at even distances behind the pairs; small gaps are likelier (a = 0.01).
    constexpr double kPower = 0.01;
    const int64_t slots = (options_.length - 2 * pairs) / 2;
    std::vector<double> weight(static_cast<size_t>(slots));
    for (int64_t i = 0; i < slots; ++i) {
      weight[static_cast<size_t>(i)] = kPower * std::pow(static_cast<double>(i + 1), kPower - 1);
    }
    for (int64_t i = 0; i < pairs; ++i) {
      const auto key = static_cast<int32_t>(order[static_cast<size_t>(i)] + 1);
      const int32_t value = draw(random, half, options_.vocab_size);
      tokens[static_cast<size_t>(2 * i)] = key;
      tokens[static_cast<size_t>(2 * i + 1)] = value;
      const auto place = static_cast<size_t>(2 * pairs + 2 * take(random, weight));
      tokens[place] = key;
      targets[place] = value;
    }
  }

 private:
  // Draws an index by weight, without replacement.
  static int64_t take(Random& random, std::vector<double>& weight) {
    double total = 0;
    for (const double w : weight) total += w;
    double rest = random.uniform() * total;
    int64_t last = 0;
    for (size_t i = 0; i < weight.size(); ++i) {
      if (weight[i] == 0) continue;
      last = static_cast<int64_t>(i);
      if (rest < weight[i]) break;
      rest -= weight[i];
    }
    weight[static_cast<size_t>(last)] = 0;
    return last;
  }
};

// A needle in filler (after RULER, arXiv 2404.06654): a repeated filler phrase, somewhere in it a
// mark and `items` digits; at the end the mark again, and the digits are due one after another.
// Token 0 is the mark, 1 to 10 are digits, the others filler.
class Needle final : public TaskSource {
 public:
  using TaskSource::TaskSource;

  static void complete(TaskOptions& options) {
    if (options.vocab_size == 0) options.vocab_size = 64;
    if (options.items == 0) options.items = 5;
    require(options.vocab_size >= 12, "needle", "needs a vocabulary of at least 12");
    require(options.length >= 2 * options.items + 3, "needle", "length {} is too short",
            options.length);
  }

 protected:
  void example(Random& random, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    constexpr int64_t kPhrase = 8;
    const int64_t items = options_.items;
    std::vector<int32_t> phrase(kPhrase);
    for (int32_t& token : phrase) token = draw(random, 11, options_.vocab_size);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = phrase[i % phrase.size()];
    const int64_t question = options_.length - items;
    auto place = static_cast<size_t>(draw(random, 0, question - items - 1));
    tokens[place] = 0;
    tokens[static_cast<size_t>(question)] = 0;
    for (int64_t i = 0; i < items; ++i) {
      const int32_t digit = draw(random, 1, 11);
      tokens[++place] = digit;
      const auto row = static_cast<size_t>(question + i);
      targets[row] = digit;
      if (i + 1 < items) tokens[row + 1] = digit;
    }
  }
};

template <typename Task>
std::unique_ptr<DataSource> make(TaskOptions options) {
  Task::complete(options);
  return std::make_unique<Task>(std::move(options));
}

}  // namespace

const std::vector<TaskType>& task_types() {
  static const std::vector<TaskType> types = {
      {"selective_copying", "copy scattered data tokens, in order, skipping noise",
       "arXiv 2312.00752", make<SelectiveCopying>},
      {"induction_heads", "recall the token that followed a mark", "arXiv 2312.00752",
       make<InductionHeads>},
      {"mqar", "recall the values of several keys", "arXiv 2312.04927", make<Mqar>},
      {"needle", "recall digits hidden in repeated filler", "arXiv 2404.06654", make<Needle>}};
  return types;
}

std::unique_ptr<DataSource> make_task(TaskOptions options) {
  require(options.length > 0 && options.length <= (1 << 24), "task", "length {} is out of range",
          options.length);
  require(options.vocab_size >= 0 && options.vocab_size <= (1 << 24), "task",
          "vocabulary {} is out of range", options.vocab_size);
  require(options.items >= 0 && options.items <= options.length, "task",
          "{} items are out of range for a length of {}", options.items, options.length);
  for (const TaskType& type : task_types()) {
    if (type.name == options.name) return type.make(std::move(options));
  }
  std::vector<std::string> names;
  for (const TaskType& type : task_types()) names.push_back(type.name);
  throw Error("task", fmt::format("unknown task '{}'", options.name),
              fmt::format("choose from {}", fmt::join(names, ", ")));
}

}  // namespace pronghorn
