#include "train/tasks.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/quote.h"
#include "base/random.h"
#include "train/task_source.h"
#include "train/text_source.h"
#include "train/tracking_tasks.h"

namespace pronghorn {
namespace {

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

  double chance() const override { return one_of(options_.vocab_size - 2); }

 protected:
  void example(uint64_t /*index*/, Random& random, std::span<int32_t> tokens,
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

  double chance() const override { return one_of(options_.vocab_size - 1); }

 protected:
  void example(uint64_t /*index*/, Random& random, std::span<int32_t> tokens,
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

  double chance() const override {
    return one_of(options_.vocab_size - options_.vocab_size / 2);  // values are the upper half
  }

 protected:
  void example(uint64_t /*index*/, Random& random, std::span<int32_t> tokens,
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
    // Queries stand at even distances after the pairs; small gaps are likelier (a = 0.01).
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

// What a needle is, and what it lies in.
struct Haystack {
  int64_t items;     // characters of the needle
  int64_t alphabet;  // of which each is one
  int64_t filler;    // tokens from the first of the filler to the vocabulary's default end
  bool text;         // the filler is text, one token per byte; otherwise a phrase over and over
};

// A needle in filler (after RULER, arXiv 2404.06654): somewhere a mark and `items` characters; at
// the end the mark again, and the characters are due one after another. With more than one question
// up to that many others stand at random places between, each answered too: more to learn from in a
// sequence, at all distances. With more than one haystack, up to that many lie one after the other,
// each of its own filler and with a needle of its own, of which the last one counts: more needles,
// and shorter distances. A curriculum begins with those and ends with one haystack and one
// question, as examples are judged. Token 0 is the mark, then come the characters, then the filler.
template <const Haystack& kHaystack>
class Needle final : public TaskSource {
 public:
  using TaskSource::TaskSource;

  static void complete(TaskOptions& options) {
    const int64_t least = kFiller + (kHaystack.text ? kHaystack.filler : 1);
    if (options.vocab_size == 0) options.vocab_size = kFiller + kHaystack.filler;
    if (options.items == 0) options.items = kHaystack.items;
    require(options.vocab_size >= least, options.name, "needs a vocabulary of at least {}", least);
    require(options.questions >= 1 && options.questions <= options.length, options.name,
            "{} questions are out of range", options.questions);
    require(options.curriculum >= 0, options.name, "a curriculum of {} tokens is out of range",
            options.curriculum);
    require(options.haystacks >= 1 && options.haystacks <= options.length, options.name,
            "{} haystacks are out of range", options.haystacks);
    require(options.length / options.haystacks >= 2 * (options.items + 1) + 1, options.name,
            "length {} is too short for {} haystack(s) and needles of {}", options.length,
            options.haystacks, options.items);
    require(options.length >= (options.questions + 1) * (options.items + 1) + 1, options.name,
            "length {} is too short for {} question(s) of {}", options.length, options.questions,
            options.items);
    if (!kHaystack.text) return;
    if (options.text == nullptr || options.text->empty()) {
      throw Error(options.name, "needs a text to hide needles in");
    }
  }

  double chance() const override { return one_of(kHaystack.alphabet); }

 protected:
  void example(uint64_t index, Random& random, std::span<int32_t> tokens,
               std::span<int32_t> targets) const override {
    const int64_t count = up_to(random, at_most(index, options_.haystacks));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t begin = options_.length * i / count, end = options_.length * (i + 1) / count;
      const auto first = static_cast<size_t>(begin), length = static_cast<size_t>(end - begin);
      haystack(random, at_most(index, options_.questions), tokens.subspan(first, length),
               targets.subspan(first, length));
    }
  }

 private:
  static constexpr int64_t kFiller = 1 + kHaystack.alphabet;

  // 1 ... most, any of them as likely.
  static int64_t up_to(Random& random, int64_t most) {
    return most == 1 ? 1 : 1 + draw(random, 0, most);
  }

  // What is left of `most` as the curriculum goes on.
  int64_t at_most(uint64_t index, int64_t most) const {
    if (options_.curriculum == 0) return most;
    const double seen = static_cast<double>(index) * static_cast<double>(options_.length);
    const double left = 1 - std::min(1.0, seen / static_cast<double>(options_.curriculum));
    return 1 + static_cast<int64_t>(left * static_cast<double>(most - 1) + 0.5);
  }

  void haystack(Random& random, int64_t most_questions, std::span<int32_t> tokens,
                std::span<int32_t> targets) const {
    fill(random, tokens);
    const int64_t block = options_.items + 1;  // a mark and the characters
    const auto length = static_cast<int64_t>(tokens.size());
    const int64_t last = length - options_.items;
    const int64_t questions = up_to(random, std::min(most_questions, (length - 1) / block - 1));
    // The needle and all questions but the last: places of a shorter sequence in which each is one.
    std::vector<int64_t> starts = places(random, questions, last - 1 - questions * (block - 1));
    for (size_t i = 0; i < starts.size(); ++i) starts[i] += static_cast<int64_t>(i) * (block - 1);
    starts.push_back(last);
    std::vector<int32_t> needle(static_cast<size_t>(options_.items));
    for (int32_t& character : needle) character = draw(random, 1, kFiller);
    for (size_t i = 0; i < starts.size(); ++i) {
      const auto start = static_cast<size_t>(starts[i]);
      tokens[start] = 0;
      for (size_t c = 0; c < needle.size(); ++c) {
        if (i > 0) targets[start + c] = needle[c];
        if (start + c + 1 < tokens.size()) tokens[start + c + 1] = needle[c];
      }
    }
  }

  void fill(Random& random, std::span<int32_t> tokens) const {
    if constexpr (kHaystack.text) {
      const std::string& text = *options_.text;
      const size_t begin = random.below(text.size());
      for (size_t i = 0; i < tokens.size(); ++i) {
        const char character = text[(begin + i) % text.size()];
        tokens[i] = static_cast<int32_t>(kFiller) + static_cast<unsigned char>(character);
      }
    } else {
      std::array<int32_t, 8> phrase;
      for (int32_t& token : phrase) token = draw(random, kFiller, options_.vocab_size);
      for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = phrase[i % phrase.size()];
    }
  }
};

constexpr Haystack kNeedle{5, 10, 53, false};
// One vocabulary for the three, so that one model learns them together.
constexpr Haystack kPasskey{5, 16, 256, false}, kNumber{7, 16, 256, true}, kKey{16, 16, 256, true};

// Examples of several tasks in turn.
class Mixture final : public DataSource {
 public:
  explicit Mixture(std::vector<std::unique_ptr<DataSource>> parts) : parts_(std::move(parts)) {}
  int64_t length() const override { return parts_.front()->length(); }
  int64_t vocab_size() const override { return parts_.front()->vocab_size(); }
  void fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) override {
    parts_[index % parts_.size()]->fill(index, tokens, targets);
  }
  double chance() const override {
    double sum = 0;
    for (const auto& part : parts_) sum += part->chance();
    return sum / static_cast<double>(parts_.size());
  }

 private:
  std::vector<std::unique_ptr<DataSource>> parts_;
};

std::unique_ptr<DataSource> make_mixture(TaskOptions options) {
  std::vector<std::unique_ptr<DataSource>> parts;
  for (const std::string& name : task_type(options.name).parts) {
    TaskOptions part = options;
    part.name = name;
    parts.push_back(make_task(std::move(part)));
  }
  return std::make_unique<Mixture>(std::move(parts));
}

}  // namespace

const std::vector<TaskType>& task_types() {
  constexpr const char *kMamba = "arXiv 2312.00752", *kZoology = "arXiv 2312.04927",
                       *kRuler = "arXiv 2404.06654";
  static const std::vector<TaskType> types = [] {
    std::vector<TaskType> list = {
        {"selective_copying",
         "copy scattered data tokens, in order, skipping noise",
         kMamba,
         {},
         false,
         make_task_source<SelectiveCopying>},
        {"induction_heads",
         "recall the token that followed a mark",
         kMamba,
         {},
         false,
         make_task_source<InductionHeads>},
        {"mqar", "recall the values of several keys", kZoology, {}, false, make_task_source<Mqar>},
        {"needle",
         "recall digits hidden in repeated filler",
         kRuler,
         {},
         false,
         make_task_source<Needle<kNeedle>>},
        {"niah_passkey",
         "recall a short key hidden in repeated filler",
         kRuler,
         {},
         false,
         make_task_source<Needle<kPasskey>>},
        {"niah_number",
         "recall a number hidden in text",
         kRuler,
         {},
         true,
         make_task_source<Needle<kNumber>>},
        {"niah_key",
         "recall a long key hidden in text",
         kRuler,
         {},
         true,
         make_task_source<Needle<kKey>>},
        {"niah",
         "the three needles in a haystack, in turn",
         kRuler,
         {"niah_passkey", "niah_number", "niah_key"},
         true,
         make_mixture}};
    const std::vector<TaskType> tracking = tracking_tasks();
    list.insert(list.end(), tracking.begin(), tracking.end());
    for (TaskType& type : list) {
      if (type.parts.empty()) type.parts = {type.name};
    }
    return list;
  }();
  return types;
}

const TaskType& task_type(const std::string& name) {
  std::vector<std::string> names;
  for (const TaskType& type : task_types()) {
    if (type.name == name) return type;
    names.push_back(type.name);
  }
  throw Error("task", fmt::format("unknown task {}", quote(name)),
              fmt::format("choose from {}", fmt::join(names, ", ")));
}

std::shared_ptr<const std::string> task_text(const std::vector<std::filesystem::path>& paths) {
  constexpr int64_t kBytes = int64_t{16} << 20;
  return std::make_shared<const std::string>(read_text(paths, kBytes));
}

std::string describe(const TaskOptions& options) {
  std::string words =
      fmt::format("{}, length {}, up to {} question(s) and {} haystack(s)", options.name,
                  options.length, options.questions, options.haystacks);
  if (options.curriculum > 0) words += fmt::format(", curriculum {}", options.curriculum);
  if (options.items > 0) words += fmt::format(", items {}", options.items);
  if (options.vocab_size > 0) words += fmt::format(", vocabulary {}", options.vocab_size);
  if (options.text != nullptr) {
    words += fmt::format(", in {} characters of text ({:016x})", options.text->size(),
                         XXH3_64bits(options.text->data(), options.text->size()));
  }
  return words;
}

std::unique_ptr<DataSource> make_task(TaskOptions options) {
  require(options.length > 0 && options.length <= (1 << 24), "task", "length {} is out of range",
          options.length);
  require(options.vocab_size >= 0 && options.vocab_size <= (1 << 24), "task",
          "vocabulary {} is out of range", options.vocab_size);
  require(options.items >= 0 && options.items <= options.length, "task",
          "{} items are out of range for a length of {}", options.items, options.length);
  const TaskType& type = task_type(options.name);
  return type.make(std::move(options));
}

}  // namespace pronghorn
