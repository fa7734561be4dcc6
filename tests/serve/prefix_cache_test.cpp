// The prefix cache: what is found, what is dropped, and what is counted.
#include "serve/prefix_cache.h"

#include <gtest/gtest.h>

#include "serve/clients.h"

namespace pronghorn {
namespace {

using namespace testing_support;

class PrefixCacheTest : public testing::Test {
 protected:
  using Place = PrefixCache::Place;

  PrefixCache make(int64_t bytes) const {
    return {bytes, [](int64_t from, int64_t to) { return static_cast<double>(to - from); }};
  }
  // Reads the text, keeping the states where it is told to.
  Place read(PrefixCache& cache, std::span<const int32_t> text, std::span<const ReadingRun> plan,
             std::span<const int64_t> keep, const std::string& salt = "") const {
    SequenceState state = model_->new_state();
    Place place = cache.root(salt);
    for (const ReadingRun& run : plan) {
      const int64_t piece = run.exact ? kExactStep : run.tokens.size();
      read_in_pieces(
          run.tokens.size(),
          [&](int64_t done, int64_t count) {
            const auto part = text.subspan(static_cast<size_t>(run.tokens.begin + done),
                                           static_cast<size_t>(count));
            model_->forward({}, continue_sequence(state, part));
            place = cache.follow(place, run.exact, part);
            if (std::ranges::count(keep, state.length()) > 0) cache.keep(place, state);
          },
          piece);
    }
    return place;
  }

  std::shared_ptr<const Model> model_ = tiny_model("hybrid");
};

TEST_F(PrefixCacheTest, FindsTheLongestStateThatWasReadInTheSamePieces) {
  PrefixCache cache = make(1 << 28);
  const auto text = random_tokens(700, 61, 1);
  const std::vector<int64_t> cuts = {100};
  const auto plan = reading_plan(700, cuts);
  EXPECT_FALSE(cache.find("", text, plan).kept);
  read(cache, text, plan, std::vector<int64_t>{100, 256, 512, 700});
  EXPECT_EQ(cache.states(), 4);
  const auto found = [&](std::span<const int32_t> tokens, std::span<const ReadingRun> runs,
                         const std::string& salt = "") {
    const PrefixCache::Found result = cache.find(salt, tokens, runs);
    EXPECT_EQ(PrefixCache::length(result.place), result.state.length());
    return result.state.length();
  };
  EXPECT_EQ(found(text, plan), 512);  // a token must be left to be read
  EXPECT_EQ(found(text, plan, "salt"), 0);
  EXPECT_EQ(found(text, reading_plan(700)), 0);  // cut elsewhere
  const std::vector<int64_t> more = {100, 300};
  EXPECT_EQ(found(text, reading_plan(700, more)), 256);
  auto other = text;
  other[400] = (other[400] + 1) % 61;
  EXPECT_EQ(found(other, plan), 256);
  EXPECT_EQ(cache.find("", other, plan).known, 256);
  other[99] = (other[99] + 1) % 61;
  EXPECT_EQ(found(other, plan), 0);
  auto longer = text;
  longer.push_back(3);
  const std::vector<int64_t> end = {100, 700};
  EXPECT_EQ(found(longer, reading_plan(701, end)), 700);
}

TEST_F(PrefixCacheTest, ExactStepsFitHoweverTheyWereCut) {
  PrefixCache cache = make(1 << 28);
  const auto text = random_tokens(100, 61, 2);
  const std::vector<TokenRange> answers = {{40, 81}};
  // Written: up to 75 of what the next turn calls the answer.
  const std::vector<TokenRange> written = {{40, 75}};
  read(cache, std::span(text).first(75), reading_plan(75, {}, written), std::vector<int64_t>{75});
  EXPECT_EQ(cache.find("", text, reading_plan(100, {}, answers)).state.length(), 75);
  const std::vector<TokenRange> shorter = {{40, 60}};
  const auto cut = cache.find("", text, reading_plan(100, {}, shorter));
  EXPECT_EQ(cut.state.length(), 0);
  EXPECT_EQ(cut.known, 56);
  EXPECT_EQ(cache.find("", text, reading_plan(100)).known, 0);
}

TEST_F(PrefixCacheTest, DropsWhatSavesLeastForItsBytes) {
  const auto text = random_tokens(600, 61, 3);
  const std::vector<int64_t> cuts = {20, 200, 220};
  const auto plan = reading_plan(600, cuts);
  PrefixCache large = make(1 << 28);
  read(large, text, plan, std::vector<int64_t>{200, 220, 600});
  const int64_t all = large.bytes();
  PrefixCache cache = make(all - 1);
  read(cache, text, plan, std::vector<int64_t>{200, 220, 600});
  EXPECT_EQ(cache.evictions(), 1);
  EXPECT_LT(cache.bytes(), all);
  // The one at 220 saved 20 tokens only.
  EXPECT_EQ(cache.find("", text, plan).state.length(), 200);
  EXPECT_EQ(cache.states(), 2);
}

TEST_F(PrefixCacheTest, WhatIsAskedForStays) {
  PrefixCache probe = make(1 << 28);
  const auto first = random_tokens(301, 61, 4);
  const std::vector<int64_t> cuts = {300};
  const auto plan = reading_plan(301, cuts);
  const std::vector<int64_t> keep = {300};
  read(probe, first, plan, keep);
  PrefixCache cache = make(3 * probe.bytes() + 100);
  read(cache, first, plan, keep);
  for (uint64_t i = 0; i < 40; ++i) {
    EXPECT_EQ(cache.find("", first, plan).state.length(), 300) << i;
    read(cache, random_tokens(301, 61, 100 + i), plan, keep);
  }
  // Nobody asks any more: it grows old.
  for (uint64_t i = 0; i < 200; ++i) read(cache, random_tokens(301, 61, 1000 + i), plan, keep);
  EXPECT_EQ(cache.find("", first, plan).state.length(), 0);
  EXPECT_EQ(cache.states(), 3);
}

TEST_F(PrefixCacheTest, CountsSharedPagesOnce) {
  const auto attention = tiny_model("transformer");
  const auto text = random_tokens(640, 61, 5);
  PrefixCache cache = make(1 << 28);
  SequenceState state = attention->new_state();
  Place place = cache.root("");
  for (int64_t done = 0; done < 640; done += 64) {
    const auto part = std::span(text).subspan(static_cast<size_t>(done), 64);
    attention->forward({}, continue_sequence(state, part));
    place = cache.follow(place, false, part);
    cache.keep(place, state);
  }
  EXPECT_EQ(cache.states(), 10);
  EXPECT_EQ(cache.bytes(), state.bytes());
}

// Attention to everything can forget what came later.
TEST_F(PrefixCacheTest, StatesThatGoBackServeEveryPlaceBeforeThem) {
  model_ = tiny_model("transformer");
  const auto text = random_tokens(700, 61, 6);
  for (const bool goes_back : {false, true}) {
    PrefixCache cache(
        1 << 28, [](int64_t from, int64_t to) { return double(to - from); }, goes_back);
    read(cache, text, reading_plan(700), std::vector<int64_t>{700});
    EXPECT_EQ(cache.find("", text, reading_plan(700)).state.length(), goes_back ? 512 : 0);
    auto other = text;
    other[300] = (other[300] + 1) % 61;
    EXPECT_EQ(cache.find("", other, reading_plan(700)).state.length(), goes_back ? 256 : 0);
    other[3] = (other[3] + 1) % 61;
    EXPECT_EQ(cache.find("", other, reading_plan(700)).state.length(), 0);
  }
}

TEST_F(PrefixCacheTest, AStateLargerThanTheCacheDropsNoOthers) {
  const auto text = random_tokens(300, 61, 7);
  PrefixCache probe = make(1 << 28);
  read(probe, text, reading_plan(300), std::vector<int64_t>{256});
  PrefixCache cache = make(probe.bytes() - 1);
  read(cache, text, reading_plan(300), std::vector<int64_t>{256});
  EXPECT_EQ(cache.states(), 0);
  EXPECT_EQ(cache.bytes(), 0);
  EXPECT_EQ(cache.evictions(), 0);
}

// A text of very many pieces is forgotten without deep recursion.
TEST_F(PrefixCacheTest, ForgetsWhatNobodyKeeps) {
  PrefixCache cache = make(1 << 28);
  Place place = cache.root("salt");
  const std::vector<int32_t> one = {1};
  for (int i = 0; i < 300000; ++i) place = cache.follow(place, true, one);
  EXPECT_EQ(PrefixCache::length(place), 300000);
  EXPECT_EQ(PrefixCache::salt(place), "salt");
  EXPECT_EQ(cache.find("salt", one, reading_plan(1)).known, 1);
  place = nullptr;
  EXPECT_EQ(cache.find("salt", one, reading_plan(1)).known, 0);
}

}  // namespace
}  // namespace pronghorn
