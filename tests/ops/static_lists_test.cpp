#include "ops/static_lists.h"

#include <gmock/gmock.h>

#include <set>

#include "base/error.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;
using testing_support::batch_of;

TEST(StaticLists, AreWindowsWithGapsAndTheFirst) {
  const StaticPattern pattern{.dilations = {1, 3}, .window = 3, .first = 2};
  EXPECT_THAT(static_list(pattern, 0, 0), ElementsAre(0));
  EXPECT_THAT(static_list(pattern, 0, 3), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(static_list(pattern, 0, 9), ElementsAre(0, 1, 7, 8, 9));
  EXPECT_THAT(static_list(pattern, 1, 5), ElementsAre(0, 1, 2, 5));
  EXPECT_THAT(static_list(pattern, 1, 10), ElementsAre(0, 1, 4, 7, 10));
}

TEST(StaticLists, DrawDifferentBlocksBetween) {
  const StaticPattern pattern{
      .block = 64, .dilations = {1, 1}, .window = 2, .first = 1, .random = 3, .seed = 9};
  std::set<int32_t> drawn;
  int differing = 0;
  for (int64_t own = 0; own < 200; ++own) {
    const std::vector<int32_t> list = static_list(pattern, 0, own);
    EXPECT_EQ(std::ssize(list), std::min<int64_t>(own + 1, 6)) << own;
    EXPECT_EQ(std::set(list.begin(), list.end()).size(), list.size()) << own;
    EXPECT_TRUE(std::is_sorted(list.begin(), list.end())) << own;
    EXPECT_EQ(list.front(), 0);
    EXPECT_EQ(list.back(), own);
    if (own >= 100) drawn.insert(list.begin() + 1, list.end() - 2);
    differing += list != static_list(pattern, 1, own);
  }
  // 300 draws from up to 200 blocks; a stuck generator gives few, and lists that are alike.
  EXPECT_GT(drawn.size(), 100u);
  EXPECT_GT(differing, 150);
}

TEST(StaticLists, DoNotDependOnTheCut) {
  const StaticPattern pattern{
      .block = 16, .dilations = {1}, .window = 1, .first = 1, .random = 2, .seed = 3};
  const BlockLists whole = static_lists(pattern, batch_of({130, 70}), {});
  ASSERT_EQ(whole.width, 4);
  for (int64_t row = 0; row < 70; ++row) {
    const auto first = whole.blocks.begin() + row * 4, second = first + 130 * 4;
    EXPECT_TRUE(std::equal(first, first + 4, second)) << row;
  }
}

TEST(StaticLists, RefuseWhatDoesNotFit) {
  EXPECT_THROW(static_lists({.block = 48}, batch_of({4}), {}), Error);
  EXPECT_THROW(static_lists({.window = 0}, batch_of({4}), {}), Error);
  EXPECT_THROW(static_lists({.dilations = {2}, .random = 1}, batch_of({4}), {}), Error);
  Batch both = batch_of({4});
  both.segments[0].mask = Mask::full;
  EXPECT_THROW(static_lists({}, both, {}), Error);
}

}  // namespace
}  // namespace pronghorn
