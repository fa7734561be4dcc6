// TextSource: epochs that visit each window once, in an order that is a function of seed and epoch.
#include "train/data_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <thread>

#include "support/errors.h"
#include "support/folder.h"
#include "train/tiny.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;

class TextSourceTest : public testing::Test {
 protected:
  // A shard in which the token at a place tells the place: numbers of four digits and a space.
  TokenShard shard_of(int64_t tokens) {
    std::string text;
    for (int i = 0; static_cast<int64_t>(text.size()) < 2 * tokens; ++i) {
      text += fmt::format("{:04} ", i);
    }
    text.resize(static_cast<size_t>(2 * tokens));
    write_file(folder_ / "t.txt", text);
    const auto made =
        prepare_tokens({folder_ / "t.txt"}, *make_byte_tokenizer(), folder_ / "data", 0.5);
    return TokenShard(made.train);
  }

  struct Example {
    std::vector<int32_t> tokens, targets;
    bool operator==(const Example&) const = default;
  };
  static Example example_of(TextSource& source, uint64_t index) {
    Example example;
    example.tokens.resize(static_cast<size_t>(source.length()));
    example.targets.resize(example.tokens.size());
    source.fill(index, example.tokens, example.targets);
    return example;
  }

  Folder folder_;
};

// Where a window begins in the shard; -1 if it is not there, or its targets are not what follows.
int64_t place_of(const std::vector<int32_t>& shard, const std::vector<int32_t>& tokens,
                 const std::vector<int32_t>& targets) {
  const auto found = std::search(shard.begin(), shard.end(), tokens.begin(), tokens.end());
  if (shard.end() - found <= static_cast<int64_t>(tokens.size())) return -1;
  if (!std::equal(targets.begin(), targets.end(), found + 1)) return -1;
  return found - shard.begin();
}

TEST_F(TextSourceTest, AnEpochVisitsEveryWindowOnce) {
  const TokenShard shard = shard_of(1000);
  std::vector<int32_t> text(static_cast<size_t>(shard.size()));
  shard.read(0, text);
  constexpr int64_t kWindow = 32;
  TextSource source(shard, kWindow, 5);
  // One window less than could fit leaves room for the offset.
  const auto windows = static_cast<uint64_t>((shard.size() - 1) / kWindow - 1);
  std::set<int64_t> offsets;
  std::set<std::vector<int64_t>> orders;
  for (uint64_t epoch = 0; epoch < 8; ++epoch) {
    std::vector<int64_t> begins;
    for (uint64_t i = 0; i < windows; ++i) {
      const Example example = example_of(source, epoch * windows + i);
      begins.push_back(place_of(text, example.tokens, example.targets));
      ASSERT_GE(begins.back(), 0);
    }
    orders.insert(begins);
    std::sort(begins.begin(), begins.end());
    offsets.insert(begins.front());
    EXPECT_LT(begins.front(), kWindow);
    for (size_t i = 1; i < begins.size(); ++i) EXPECT_EQ(begins[i] - begins[i - 1], kWindow);
  }
  EXPECT_EQ(orders.size(), 8u);
  EXPECT_GT(offsets.size(), 4u);  // eight draws of 32: four or fewer different ones in 1 of 10^5
}

TEST_F(TextSourceTest, SeedsDiffer) {
  const TokenShard shard = shard_of(1000);
  TextSource one(shard, 32, 1), same(shard, 32, 1), other(shard, 32, 2);
  int64_t equal = 0;
  for (uint64_t i = 0; i < 50; ++i) {
    EXPECT_EQ(example_of(one, i), example_of(same, i));
    equal += example_of(one, i) == example_of(other, i) ? 1 : 0;
  }
  EXPECT_LT(equal, 10);
}

TEST_F(TextSourceTest, AnyOrderAndSeveralThreadsGiveTheSameExamples) {
  const TokenShard shard = shard_of(1000);
  constexpr uint64_t kExamples = 120;  // four epochs
  TextSource source(shard, 32, 5);
  std::vector<Example> forward;
  for (uint64_t i = 0; i < kExamples; ++i) forward.push_back(example_of(source, i));
  for (uint64_t i = kExamples; i-- > 0;) {
    TextSource fresh(shard, 32, 5);
    EXPECT_EQ(example_of(source, i), forward[i]);
    EXPECT_EQ(example_of(fresh, i), forward[i]);
  }
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t thread = 0; thread < wrong.size(); ++thread) {
    threads.emplace_back([&, thread] {
      for (uint64_t i = 0; i < kExamples; ++i) {
        const uint64_t index = (i * 37 + thread * 11) % kExamples;
        wrong[thread] += example_of(source, index) == forward[index] ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST_F(TextSourceTest, ShortTexts) {
  const TokenShard shard = shard_of(100);
  const int64_t size = shard.size();
  TextSource whole(shard, size - 1, 0);  // exactly one window and the token after it
  EXPECT_EQ(example_of(whole, 0), example_of(whole, 12345));
  for (const int64_t window : {size, size + 1, int64_t{0}, int64_t{-1}, INT64_MAX}) {
    EXPECT_THAT(error_of([&] { TextSource(shard, window, 0); }), HasSubstr("window")) << window;
  }
}

}  // namespace
}  // namespace pronghorn
