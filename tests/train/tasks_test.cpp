// Synthetic tasks: every answer is found again by reading the tokens alone.
#include "train/tasks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

#include "support/errors.h"
#include "train/tiny.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::error_of;

struct Example {
  std::vector<int32_t> tokens, targets;
  bool operator==(const Example&) const = default;
};

Example example_of(DataSource& source, uint64_t index) {
  Example example;
  // Filled with what no task may leave in place.
  example.tokens.assign(static_cast<size_t>(source.length()), -7);
  example.targets.assign(static_cast<size_t>(source.length()), -7);
  source.fill(index, example.tokens, example.targets);
  return example;
}

TaskOptions options_of(const std::string& name, int64_t length, int64_t items = 0,
                       int64_t vocab_size = 0, uint64_t seed = 3) {
  TaskOptions options = testing_train::tiny_task(name, length, vocab_size, items, seed);
  static const auto text = std::make_shared<const std::string>(testing_train::tiny_text());
  options.text = text;
  return options;
}

TaskOptions needle_of(const std::string& name, int64_t length, int64_t questions) {
  TaskOptions options = options_of(name, length);
  options.questions = questions;
  return options;
}

// Calls check(example, source) on many examples of several sizes.
template <typename Check>
void for_examples(const std::vector<TaskOptions>& sizes, const Check& check) {
  for (const TaskOptions& options : sizes) {
    const auto source = make_task(options);
    for (uint64_t index = 0; index < 200; ++index) {
      SCOPED_TRACE(fmt::format("{} length {} items {} index {}", options.name, options.length,
                               options.items, index));
      check(example_of(*source, index), *source);
      if (testing::Test::HasFailure()) return;
    }
  }
}

TEST(Tasks, ShapesAndRanges) {
  for (const TaskType& type : task_types()) {
    SCOPED_TRACE(type.name);
    EXPECT_FALSE(type.description.empty());
    EXPECT_THAT(type.source, HasSubstr("arXiv"));
    const auto source = make_task(options_of(type.name, 96));
    EXPECT_EQ(source->length(), 96);
    EXPECT_GT(source->vocab_size(), 0);
    for (uint64_t index = 0; index < 100; ++index) {
      const Example example = example_of(*source, index);
      int64_t asked = 0;
      for (size_t t = 0; t < example.tokens.size(); ++t) {
        ASSERT_GE(example.tokens[t], 0);
        ASSERT_LT(example.tokens[t], source->vocab_size());
        ASSERT_GE(example.targets[t], -1);
        ASSERT_LT(example.targets[t], source->vocab_size());
        asked += example.targets[t] >= 0 ? 1 : 0;
      }
      ASSERT_GE(asked, 1);
    }
  }
}

TEST(Tasks, AnExampleIsAFunctionOfSeedAndNumber) {
  for (const TaskType& type : task_types()) {
    SCOPED_TRACE(type.name);
    const auto one = make_task(options_of(type.name, 64)),
               same = make_task(options_of(type.name, 64));
    const auto other = make_task(options_of(type.name, 64, 0, 0, 4));
    std::set<std::vector<int32_t>> seen;
    for (uint64_t index = 0; index < 50; ++index) seen.insert(example_of(*one, index).tokens);
    EXPECT_EQ(seen.size(), 50u);
    // In any order, from another object too.
    for (const uint64_t index : {uint64_t{49}, uint64_t{0}, uint64_t{1} << 48, uint64_t{7}}) {
      EXPECT_EQ(example_of(*one, index), example_of(*same, index));
      EXPECT_NE(example_of(*one, index), example_of(*other, index));
    }
  }
}

TEST(Tasks, SelectiveCopyingAsksForTheDataInOrder) {
  for_examples({options_of("selective_copying", 64), options_of("selective_copying", 16, 8),
                options_of("selective_copying", 40, 1, 3)},
               [](const Example& example, const DataSource&) {
                 std::vector<int32_t> data, due;
                 bool asking = false;
                 for (size_t t = 0; t < example.tokens.size(); ++t) {
                   const int32_t token = example.tokens[t];
                   if (token == 1) {
                     asking = true;
                     due.push_back(example.targets[t]);
                     continue;
                   }
                   EXPECT_FALSE(asking) << "data or noise among the marks";
                   EXPECT_EQ(example.targets[t], -1);
                   if (token != 0) data.push_back(token);
                 }
                 EXPECT_EQ(data, due);
                 EXPECT_FALSE(data.empty());
               });
}

TEST(Tasks, InductionHeadsAskForTheTokenAfterTheMark) {
  for_examples({options_of("induction_heads", 64), options_of("induction_heads", 3),
                options_of("induction_heads", 9, 0, 2)},
               [](const Example& example, const DataSource&) {
                 EXPECT_EQ(std::count(example.tokens.begin(), example.tokens.end(), 0), 2);
                 const auto mark = std::find(example.tokens.begin(), example.tokens.end(), 0);
                 EXPECT_EQ(example.tokens.back(), 0);
                 EXPECT_EQ(example.targets.back(), *(mark + 1));
                 EXPECT_TRUE(std::all_of(example.targets.begin(), example.targets.end() - 1,
                                         [](int32_t target) { return target == -1; }));
               });
}

TEST(Tasks, MqarAsksForTheValueOfEachKeyOnce) {
  const std::vector<TaskOptions> sizes = {options_of("mqar", 128, 8, 512), options_of("mqar", 64),
                                          options_of("mqar", 32, 8, 18),
                                          options_of("mqar", 4, 1, 4)};
  for (const TaskOptions& options : sizes) {
    const auto pairs = static_cast<size_t>(options.items > 0 ? options.items : options.length / 16);
    for_examples({options}, [&](const Example& example, const DataSource& source) {
      std::map<int32_t, int32_t> stored;
      for (size_t i = 0; i < pairs; ++i) {
        const int32_t key = example.tokens[2 * i], value = example.tokens[2 * i + 1];
        EXPECT_GT(key, 0);
        EXPECT_LT(key, source.vocab_size() / 2);
        EXPECT_GE(value, source.vocab_size() / 2);
        EXPECT_TRUE(stored.emplace(key, value).second) << "key " << key << " stored twice";
        EXPECT_EQ(example.targets[2 * i], -1);
        EXPECT_EQ(example.targets[2 * i + 1], -1);
      }
      // Behind the pairs a stored key stands exactly where its value is due, and once.
      std::set<int32_t> asked;
      for (size_t t = 2 * pairs; t < example.tokens.size(); ++t) {
        const auto found = stored.find(example.tokens[t]);
        EXPECT_EQ(example.targets[t], found == stored.end() ? -1 : found->second);
        if (found == stored.end()) continue;
        EXPECT_TRUE(asked.insert(found->first).second);
      }
      EXPECT_EQ(asked.size(), pairs);
    });
  }
}

TEST(Tasks, MqarAsksEarlyMoreOftenThanLate) {
  // The gaps follow a power law: far more than half of the queries are in the first half.
  const auto source = make_task(options_of("mqar", 256, 4, 512));
  int64_t early = 0, all = 0;
  for (uint64_t index = 0; index < 500; ++index) {
    const Example example = example_of(*source, index);
    for (size_t t = 8; t < 256; ++t) {
      if (example.targets[t] < 0) continue;
      ++all;
      early += t < 132 ? 1 : 0;
    }
  }
  // Of 124 slots with weights i^-0.99 the first 62 hold 87% of the first draw; 2000 draws.
  EXPECT_GT(static_cast<double>(early), 0.75 * static_cast<double>(all));
}

TEST(Tasks, NeedleAsksForTheDigitsAfterTheMark) {
  for_examples({options_of("needle", 64), options_of("needle", 13), options_of("needle", 50, 1)},
               [](const Example& example, const DataSource&) {
                 const auto& tokens = example.tokens;
                 EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 0), 2);
                 const auto mark = static_cast<size_t>(std::find(tokens.begin(), tokens.end(), 0) -
                                                       tokens.begin());
                 size_t place = mark + 1;
                 size_t asked = 0;
                 for (size_t t = 0; t < tokens.size(); ++t) {
                   if (example.targets[t] < 0) continue;
                   EXPECT_GE(tokens[place], 1);
                   EXPECT_LE(tokens[place], 10);
                   EXPECT_EQ(example.targets[t], tokens[place]);
                   // The first digit is due at the mark, each other one after its predecessor.
                   EXPECT_EQ(tokens[t], asked == 0 ? 0 : tokens[place - 1]);
                   ++place;
                   ++asked;
                 }
                 EXPECT_GE(asked, 1u);
                 // After the digits the filler goes on: no further digit could be asked for.
                 EXPECT_TRUE(tokens[place] > 10 || tokens[place] == 0);
                 EXPECT_GE(example.targets.back(), 0);
               });
}

TEST(Tasks, EveryQuestionAsksForTheNeedleAgain) {
  for_examples({needle_of("needle", 64, 3), needle_of("niah_passkey", 64, 4),
                needle_of("niah_number", 256, 8), needle_of("niah_key", 87, 4),
                needle_of("niah_key", 35, 1)},
               [](const Example& example, const DataSource& source) {
                 const auto& tokens = example.tokens;
                 const int32_t characters = source.vocab_size() == 64 ? 10 : 16;
                 std::vector<std::vector<int32_t>> runs;  // what follows each mark
                 std::vector<bool> asked;
                 for (size_t t = 0; t < tokens.size(); ++t) {
                   if (tokens[t] == 0) {
                     runs.emplace_back();
                     asked.push_back(example.targets[t] >= 0);
                   } else if (tokens[t] <= characters) {
                     ASSERT_FALSE(runs.empty());
                     runs.back().push_back(tokens[t]);
                   }
                   if (example.targets[t] < 0) continue;
                   EXPECT_EQ(example.targets[t], runs.front().at(runs.back().size()));
                 }
                 ASSERT_GE(runs.size(), 2u);
                 EXPECT_FALSE(asked.front());
                 EXPECT_EQ(std::count(asked.begin(), asked.end(), true),
                           static_cast<int64_t>(runs.size()) - 1);
                 // The last question's last character is due and not shown.
                 for (size_t i = 1; i + 1 < runs.size(); ++i) EXPECT_EQ(runs[i], runs.front());
                 EXPECT_EQ(runs.back().size() + 1, runs.front().size());
                 EXPECT_EQ(example.targets.back(), runs.front().back());
               });
}

TEST(Tasks, EveryHaystackHasItsOwnNeedle) {
  TaskOptions options = needle_of("niah_passkey", 64, 3);
  options.haystacks = 4;
  std::set<size_t> needles_seen;
  for_examples({options}, [&](const Example& example, const DataSource&) {
    // A mark at which nothing is asked begins a needle; what is due later is that of the last one.
    std::vector<int32_t> needle;
    size_t needles = 0, place = 0;
    for (size_t t = 0; t < example.tokens.size(); ++t) {
      const int32_t token = example.tokens[t], target = example.targets[t];
      if (token == 0) {
        place = 0;
        if (target < 0) {
          ++needles;
          needle.clear();
        }
      }
      const bool character = token > 0 && token <= 16;
      if (character && needle.size() < 5 && target < 0) needle.push_back(token);
      if (target < 0) continue;
      ASSERT_LT(place, needle.size());
      EXPECT_EQ(target, needle[place++]);
    }
    EXPECT_EQ(place, 5u);  // the last one is asked for at the end
    EXPECT_LE(needles, 4u);
    needles_seen.insert(needles);
  });
  EXPECT_EQ(needles_seen, (std::set<size_t>{1, 2, 3, 4}));
  options.haystacks = 5;  // of 12 tokens: too short for a needle, its question and filler
  EXPECT_THAT(error_of([&] { make_task(options); }), HasSubstr("5 haystack(s)"));
  options.haystacks = 0;
  EXPECT_THROW(make_task(options), Error);
}

TEST(Tasks, ACurriculumEndsWithOneHaystackAndOneQuestion) {
  TaskOptions options = needle_of("niah_passkey", 64, 5);
  options.haystacks = 4;
  options.curriculum = 64 * 100;
  const auto source = make_task(options);
  const auto marks = [&](uint64_t index) {
    const Example example = example_of(*source, index);
    return std::count(example.tokens.begin(), example.tokens.end(), 0);
  };
  int64_t early = 0, late = 0;
  for (uint64_t index = 0; index < 30; ++index) early += marks(index);
  for (uint64_t index = 60; index < 90; ++index) late += marks(index);
  EXPECT_GT(early, late + 30);
  // A needle and its question.
  for (uint64_t index = 100; index < 130; ++index) EXPECT_EQ(marks(index), 2) << index;
  EXPECT_EQ(marks(INT64_MAX), 2);
  options.curriculum = -1;
  EXPECT_THAT(error_of([&] { make_task(options); }), HasSubstr("curriculum"));
}

TEST(Tasks, AreDescribedByAllThatChangesTheirExamples) {
  const TaskOptions options = options_of("niah_number", 128);
  const auto changed = [&](auto change) {
    TaskOptions other = options;
    change(other);
    return describe(other);
  };
  const std::set<std::string> descriptions = {
      describe(options),
      changed([](TaskOptions& o) { o.name = "niah_key"; }),
      changed([](TaskOptions& o) { o.length = 64; }),
      changed([](TaskOptions& o) { o.items = 3; }),
      changed([](TaskOptions& o) { o.vocab_size = 500; }),
      changed([](TaskOptions& o) { o.questions = 2; }),
      changed([](TaskOptions& o) { o.haystacks = 2; }),
      changed([](TaskOptions& o) { o.curriculum = 1000; }),
      changed([](TaskOptions& o) { o.text = std::make_shared<const std::string>("other"); }),
      changed([](TaskOptions& o) { o.text = nullptr; })};
  EXPECT_EQ(descriptions.size(), 10u);
}

TEST(Tasks, NumbersAndKeysAreHiddenInTheText) {
  for (const char* name : {"niah_number", "niah_key"}) {
    TaskOptions options = options_of(name, 128);
    const Example example = example_of(*make_task(options), 0);
    std::string filler;
    for (const int32_t token : example.tokens) {
      filler += token > 16 ? static_cast<char>(token - 17) : '.';
    }
    const size_t mark = filler.find("....");
    ASSERT_NE(mark, filler.npos);
    EXPECT_THAT(*options.text + *options.text, HasSubstr(filler.substr(0, mark)));
    options.text = nullptr;
    EXPECT_THAT(error_of([&] { make_task(options); }), HasSubstr("needs a text"));
  }
}

TEST(Tasks, TheFamilyTakesItsPartsInTurn) {
  const auto family = make_task(needle_of("niah", 128, 2));
  const std::vector<std::string>& parts = task_type("niah").parts;
  ASSERT_EQ(parts.size(), 3u);
  for (uint64_t index = 0; index < 9; ++index) {
    const auto part = make_task(needle_of(parts[index % 3], 128, 2));
    EXPECT_EQ(part->vocab_size(), family->vocab_size());
    EXPECT_EQ(example_of(*family, index), example_of(*part, index));
  }
}

TEST(Tasks, RunningSumsAreThoseOfTheTokens) {
  for (const auto& [name, items, modulus] :
       {std::tuple{"parity", 0, 2}, std::tuple{"modular_addition", 0, 5},
        std::tuple{"modular_addition", 7, 7}}) {
    for_examples({options_of(name, 40, items)},
                 [modulus = modulus](const Example& example, const DataSource& source) {
                   EXPECT_EQ(source.vocab_size(), modulus);
                   int32_t sum = 0;
                   for (size_t t = 0; t < example.tokens.size(); ++t) {
                     sum += example.tokens[t];
                     EXPECT_EQ(example.targets[t], sum % modulus);
                   }
                 });
  }
}

// The number of a permutation from its Lehmer code, and back.
std::vector<int> permutation_of(int32_t number, int count) {
  std::vector<int> left(static_cast<size_t>(count)), result;
  std::iota(left.begin(), left.end(), 0);
  int factorial = 1;
  for (int i = 2; i < count; ++i) factorial *= i;
  for (int i = count - 1; i >= 0; --i) {
    const auto place = left.begin() + number / factorial;
    result.push_back(*place);
    left.erase(place);
    number %= factorial;
    if (i > 0) factorial /= i;
  }
  return result;
}

TEST(Tasks, PermutationsAreComposed) {
  for (const int count : {3, 5}) {
    for_examples({options_of("permutations", 32, count)},
                 [count](const Example& example, const DataSource&) {
                   std::vector<int> state = permutation_of(0, count);
                   for (size_t t = 0; t < example.tokens.size(); ++t) {
                     const std::vector<int> newest = permutation_of(example.tokens[t], count);
                     for (int& thing : state) thing = newest[static_cast<size_t>(thing)];
                     EXPECT_EQ(permutation_of(example.targets[t], count), state);
                   }
                 });
  }
}

TEST(Tasks, FuzzyRecallAsksForValuesThatWereGiven) {
  for_examples({options_of("fuzzy_recall", 96), options_of("fuzzy_recall", 200, 20),
                options_of("fuzzy_recall", 64, 2, 4)},
               [](const Example& example, const DataSource& source) {
                 const int64_t half = source.vocab_size() / 2;
                 const auto is_key = [&](size_t t) { return example.tokens[t] < half; };
                 std::map<std::vector<int32_t>, std::vector<int32_t>> known;
                 int64_t asked = 0;
                 for (size_t t = 0; t < example.tokens.size();) {
                   std::vector<int32_t> key, value;
                   for (; t < example.tokens.size() && is_key(t); ++t)
                     key.push_back(example.tokens[t]);
                   const size_t first = t;
                   for (; t < example.tokens.size() && !is_key(t); ++t)
                     value.push_back(example.tokens[t]);
                   if (value.empty()) break;  // what fills the rest
                   const auto before = known.find(key);
                   for (size_t i = 0; i < value.size(); ++i) {
                     const int32_t due = before == known.end() ? -1 : before->second[i];
                     EXPECT_EQ(example.targets[first + i - 1], due);
                     asked += due >= 0 ? 1 : 0;
                   }
                   if (before == known.end()) known[key] = value;
                   EXPECT_EQ(known[key], value);
                 }
                 EXPECT_EQ(asked, std::count_if(example.targets.begin(), example.targets.end(),
                                                [](int32_t target) { return target >= 0; }));
                 EXPECT_GT(asked, 0);
               });
}

TEST(Tasks, CompressionAsksForEverythingInOrder) {
  for_examples({options_of("compression", 64), options_of("compression", 50, 3)},
               [](const Example& example, const DataSource&) {
                 const auto mark = std::find(example.tokens.begin(), example.tokens.end(), 0);
                 const std::vector<int32_t> given(example.tokens.begin(), mark);
                 std::vector<int32_t> due;
                 for (const int32_t target : example.targets) {
                   if (target >= 0) due.push_back(target);
                 }
                 EXPECT_EQ(given, due);
                 EXPECT_EQ(example.targets[given.size()], given.front());
               });
}

// The share that guessing gets right, against guesses.
TEST(Tasks, ChanceIsThatOfGuessing) {
  for (const TaskType& type : task_types()) {
    SCOPED_TRACE(type.name);
    TaskOptions options = options_of(type.name, 256);
    const auto source = make_task(options);
    // Guesses are drawn from the answers of other examples, so their alphabet is the task's own.
    std::vector<int32_t> answers;
    std::vector<int32_t> tokens(256), targets(256);
    for (uint64_t i = 0; i < 300; ++i) {
      source->fill(i, tokens, targets);
      for (const int32_t target : targets) {
        if (target >= 0) answers.push_back(target);
      }
    }
    const std::set<int32_t> alphabet(answers.begin(), answers.end());
    EXPECT_GT(source->chance(), 0);
    // All answers of small alphabets have been seen by now; those of large ones are at most as
    // many.
    const double seen = 1 / static_cast<double>(alphabet.size());
    if (source->chance() > 0.01) {
      EXPECT_DOUBLE_EQ(source->chance(), seen);
    } else {
      EXPECT_LE(source->chance(), seen);
    }
  }
}

TEST(Tasks, RefusesHostileSizes) {
  EXPECT_THAT(error_of([] { make_task(options_of("nothing", 64)); }),
              HasSubstr("selective_copying"));
  constexpr int64_t kHuge = INT64_MAX, kHalf = INT64_MAX / 2 + 1;
  for (const TaskType& type : task_types()) {
    SCOPED_TRACE(type.name);
    for (const int64_t length : {int64_t{0}, int64_t{-1}, kHuge, INT64_MIN, int64_t{1}}) {
      EXPECT_THROW(make_task(options_of(type.name, length)), Error) << length;
    }
    for (const int64_t vocab : {int64_t{1}, int64_t{-1}, kHuge, INT64_MIN}) {
      EXPECT_THROW(make_task(options_of(type.name, 64, 0, vocab)), Error) << vocab;
    }
    if (type.name == "induction_heads") continue;  // has one item whatever is asked for
    // kHalf: twice it overflows.
    for (const int64_t items : {int64_t{-1}, int64_t{1000}, kHuge, kHalf, kHuge / 4 + 1}) {
      EXPECT_THROW(make_task(options_of(type.name, 64, items)), Error) << items;
    }
  }
}

}  // namespace
}  // namespace pronghorn
