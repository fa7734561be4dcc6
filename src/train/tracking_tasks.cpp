#include "train/tracking_tasks.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "base/error.h"
#include "train/task_source.h"

namespace pronghorn {
namespace {

// Sums modulo `items` of the tokens so far, asked for at every token: parity for 2. Recurrences
// whose transition has positive eigenvalues alone cannot keep it up on longer texts than they
// learned from (arXiv 2411.12537, section 3).
template <int64_t kModulus>
class RunningSum final : public TaskSource {
 public:
  using TaskSource::TaskSource;

  static void complete(TaskOptions& options) {
    if (options.items == 0) options.items = kModulus;
    if (options.vocab_size == 0) options.vocab_size = options.items;
    require(options.length >= 2, options.name, "needs a length of at least 2");
    require(options.items >= 2, options.name, "a modulus of {} is out of range", options.items);
    require(options.vocab_size >= options.items, options.name, "needs a vocabulary of at least {}",
            options.items);
  }

  double chance() const override { return one_of(options_.items); }

 protected:
  void example(uint64_t /*index*/, Random& random, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    int64_t sum = 0;
    for (size_t t = 0; t < tokens.size(); ++t) {
      tokens[t] = draw(random, 0, options_.items);
      sum = (sum + tokens[t]) % options_.items;
      targets[t] = static_cast<int32_t>(sum);
    }
  }
};

// The product so far of permutations of `items` things, asked for at every token: of 5, the word
// problem of S5, which is complete for NC1 (arXiv 2404.08819, section 5). A token is the number of
// a permutation in lexicographic order; the newest acts last.
class Permutations final : public TaskSource {
 public:
  static constexpr int64_t kMost = 5;
  using Permutation = std::array<int8_t, kMost>;

  explicit Permutations(TaskOptions options)
      : TaskSource(std::move(options)), all_(permutations(options_.items)) {}

  static void complete(TaskOptions& options) {
    if (options.items == 0) options.items = kMost;
    require(options.length >= 2, options.name, "needs a length of at least 2");
    require(options.items >= 2 && options.items <= kMost, options.name,
            "permutations of {} things: 2 to {} are possible", options.items, kMost);
    const auto count = static_cast<int64_t>(permutations(options.items).size());
    if (options.vocab_size == 0) options.vocab_size = count;
    require(options.vocab_size >= count, options.name, "needs a vocabulary of at least {}", count);
  }

  double chance() const override { return one_of(static_cast<int64_t>(all_.size())); }

 protected:
  void example(uint64_t /*index*/, Random& random, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    Permutation state = all_.front();
    for (size_t t = 0; t < tokens.size(); ++t) {
      tokens[t] = draw(random, 0, static_cast<int64_t>(all_.size()));
      const Permutation& newest = all_[static_cast<size_t>(tokens[t])];
      for (int8_t& thing : state) thing = newest[static_cast<size_t>(thing)];
      targets[t] = static_cast<int32_t>(std::ranges::lower_bound(all_, state) - all_.begin());
    }
  }

 private:
  // In lexicographic order; things beyond `count` stay where they are.
  static std::vector<Permutation> permutations(int64_t count) {
    Permutation next;
    std::iota(next.begin(), next.end(), int8_t{0});
    std::vector<Permutation> all;
    do {
      all.push_back(next);
    } while (std::next_permutation(next.begin(), next.begin() + count));
    return all;
  }

  std::vector<Permutation> all_;
};

// Fuzzy recall (MAD, arXiv 2403.17844, section 3.1): `items` pairs of a key and a value of one to
// three tokens each come again and again, in any order; where a key comes again, the tokens of its
// value are due. Keys are of the lower half of the vocabulary, values of the upper half.
class FuzzyRecall final : public TaskSource {
 public:
  using TaskSource::TaskSource;

  static void complete(TaskOptions& options) {
    if (options.vocab_size == 0) options.vocab_size = 64;
    if (options.items == 0) options.items = std::max<int64_t>(1, options.length / 32);
    require(options.vocab_size >= 2, options.name, "needs a vocabulary of at least 2");
    const int64_t half = std::min<int64_t>(options.vocab_size / 2, 1 << 10);
    require(options.items <= half * half, options.name,
            "a vocabulary of {} has too few keys for {} pairs", options.vocab_size, options.items);
    // So many pairs fit, whatever their lengths, that one of them comes again.
    require(options.length / (2 * kMost) > options.items, options.name,
            "length {} is too short for {} pairs and one more", options.length, options.items);
  }

  double chance() const override { return one_of(options_.vocab_size - half()); }

 protected:
  void example(uint64_t /*index*/, Random& random, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    using Word = std::vector<int32_t>;
    const auto word = [&](int64_t low, int64_t high) {
      Word drawn(static_cast<size_t>(1 + draw(random, 0, kMost)));
      for (int32_t& token : drawn) token = draw(random, low, high);
      return drawn;
    };
    std::vector<std::pair<Word, Word>> pairs;
    std::set<Word> keys;
    while (std::ssize(pairs) < options_.items) {
      const Word key = word(0, half());
      if (keys.insert(key).second) pairs.emplace_back(key, word(half(), options_.vocab_size));
    }
    std::vector<bool> seen(pairs.size());
    size_t t = 0;
    while (t + 2 * kMost <= tokens.size()) {
      const size_t chosen = random.below(pairs.size());
      const auto& [key, value] = pairs[chosen];
      t = static_cast<size_t>(std::ranges::copy(key, tokens.begin() + static_cast<int64_t>(t)).out -
                              tokens.begin());
      for (const int32_t token : value) {
        if (seen[chosen]) targets[t - 1] = token;
        tokens[t++] = token;
      }
      seen[chosen] = true;
    }
    for (; t < tokens.size(); ++t) tokens[t] = draw(random, 0, half());
  }

 private:
  static constexpr int64_t kMost = 3;  // tokens of a key, and of a value
  int64_t half() const { return options_.vocab_size / 2; }
};

// Compression (after MAD, arXiv 2403.17844, section 3.1): `items` random tokens and a mark, after
// which all of them are due in order, so that everything must be in the state. Token 0 is the mark.
class Compression final : public TaskSource {
 public:
  using TaskSource::TaskSource;

  static void complete(TaskOptions& options) {
    if (options.vocab_size == 0) options.vocab_size = 16;
    if (options.items == 0) options.items = options.length / 2;
    require(options.vocab_size >= 2, options.name, "needs a vocabulary of at least 2");
    require(options.items >= 1 && options.length / 2 >= options.items, options.name,
            "length {} is too short for {} tokens and as many answers", options.length,
            options.items);
  }

  double chance() const override { return one_of(options_.vocab_size - 1); }

 protected:
  void example(uint64_t /*index*/, Random& random, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    const auto count = static_cast<size_t>(options_.items);
    std::fill(tokens.begin(), tokens.end(), 0);
    for (size_t i = 0; i < count; ++i) {
      const int32_t token = draw(random, 1, options_.vocab_size);
      tokens[i] = token;
      targets[count + i] = token;
      if (i + 1 < count) tokens[count + 1 + i] = token;
    }
  }
};

}  // namespace

std::vector<TaskType> tracking_tasks() {
  constexpr const char *kNegative = "arXiv 2411.12537", *kMad = "arXiv 2403.17844";
  return {{"parity",
           "tell whether ones so far are even or odd, at every token",
           kNegative,
           {},
           false,
           make_task_source<RunningSum<2>>},
          {"modular_addition",
           "tell the sum so far modulo a number, at every token",
           kNegative,
           {},
           false,
           make_task_source<RunningSum<5>>},
          {"permutations",
           "tell the product so far of permutations, at every token",
           "arXiv 2404.08819",
           {},
           false,
           make_task_source<Permutations>},
          {"fuzzy_recall",
           "recall values of several tokens by keys of several tokens",
           kMad,
           {},
           false,
           make_task_source<FuzzyRecall>},
          {"compression",
           "tell all tokens again, in order",
           kMad,
           {},
           false,
           make_task_source<Compression>}};
}

}  // namespace pronghorn
