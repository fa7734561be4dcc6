// The pieces in which prompts are read.
#include "decode/reading_plan.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/random.h"
#include "tensor/journal.h"

namespace pronghorn {
namespace {

using Plan = std::vector<ReadingRun>;

TEST(ReadingPlan, CutsAtMultiplesMessagesAndAnswers) {
  EXPECT_EQ(reading_plan(0), Plan());
  EXPECT_EQ(reading_plan(16), (Plan{{{0, 16}, true}}));
  EXPECT_EQ(reading_plan(17), (Plan{{{0, 17}, false}}));
  EXPECT_EQ(reading_plan(515), (Plan{{{0, 256}, false}, {{256, 512}, false}, {{512, 515}, true}}));
  const std::vector<int64_t> cuts = {0, 100, 110, 110, 256, 300};
  EXPECT_EQ(
      reading_plan(300, cuts),
      (Plan{{{0, 100}, false}, {{100, 110}, true}, {{110, 256}, false}, {{256, 300}, false}}));
  const std::vector<TokenRange> answers = {{50, 100}, {100, 100}, {250, 290}};
  EXPECT_EQ(reading_plan(300, cuts, answers), (Plan{{{0, 50}, false},
                                                    {{50, 100}, true},
                                                    {{100, 110}, true},
                                                    {{110, 250}, false},
                                                    {{250, 290}, true},
                                                    {{290, 300}, true}}));
}

TEST(ReadingPlan, OfATextThatGoesOnBeginsAlike) {
  Random random(3, "plans");
  for (int round = 0; round < 300; ++round) {
    std::vector<int64_t> cuts;
    std::vector<TokenRange> answers;
    int64_t length = 0;
    Plan before;
    for (int turn = 0; turn < 6; ++turn) {
      length += 1 + static_cast<int64_t>(random.below(400));
      cuts.push_back(length);
      const int64_t end = length + static_cast<int64_t>(random.below(20));
      const Plan now = reading_plan(end, cuts, answers);
      // Up to the last cut there is, which the end of the prompt is not.
      if (!before.empty()) before.pop_back();
      ASSERT_GE(now.size(), before.size());
      EXPECT_TRUE(std::equal(before.begin(), before.end(), now.begin()));
      int64_t at = 0;
      for (const ReadingRun& run : now) {
        EXPECT_EQ(run.tokens.begin, at);
        EXPECT_GT(run.tokens.size(), 0);
        EXPECT_TRUE(run.exact || run.tokens.size() <= kPiece);
        at = run.tokens.end;
      }
      EXPECT_EQ(at, end);
      length = end + static_cast<int64_t>(random.below(90));
      answers.push_back({end, length});
      before = now;
    }
  }
}

TEST(ReadingPlan, RefusesPlacesThatAreNone) {
  const std::vector<int64_t> back = {5, 4}, beyond = {11}, negative = {-1};
  EXPECT_THROW(reading_plan(10, back), UsageError);
  EXPECT_THROW(reading_plan(10, beyond), UsageError);
  EXPECT_THROW(reading_plan(10, negative), UsageError);
  const std::vector<TokenRange> over = {{1, 5}, {4, 6}}, wrong = {{5, 1}}, far = {{5, 11}};
  EXPECT_THROW(reading_plan(10, {}, over), UsageError);
  EXPECT_THROW(reading_plan(10, {}, wrong), UsageError);
  EXPECT_THROW(reading_plan(10, {}, far), UsageError);
}

}  // namespace
}  // namespace pronghorn
