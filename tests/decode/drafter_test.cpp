// Drafters that look guesses up, against searches that are obviously right; stacks; what a
// controller makes of acceptance and costs.
#include "decode/drafter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/random.h"
#include "decode/controller.h"
#include "decode/lookup_drafter.h"
#include "decode/suffix_automaton.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

using Tokens = std::vector<int32_t>;

// Text that repeats itself with errors.
Tokens repetitive_text(int64_t count, int32_t vocabulary, uint64_t seed) {
  Random random(seed, "text");
  Tokens text;
  while (static_cast<int64_t>(text.size()) < count) {
    if (text.size() > 4 && random.uniform() < 0.6) {
      const size_t from = random.below(text.size() - 2), length = 1 + random.below(12);
      for (size_t i = 0; i < length; ++i) text.push_back(text[from + i]);
    } else {
      text.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(vocabulary))));
    }
  }
  text.resize(static_cast<size_t>(count));
  return text;
}

// Whether the last `length` tokens of text end at `end` too.
bool same_ends(const Tokens& text, size_t length, size_t end) {
  if (end < length) return false;
  return std::equal(text.end() - static_cast<int64_t>(length), text.end(),
                    text.begin() + static_cast<int64_t>(end - length));
}

size_t longest_repeat(const Tokens& text) {
  size_t longest = 0;
  for (size_t end = 1; end < text.size(); ++end) {
    size_t n = 0;
    while (n < end && same_ends(text, n + 1, end)) ++n;
    longest = std::max(longest, n);
  }
  return longest;
}

Draft ask(Drafter& drafter, int64_t limit = kMaxDraft, size_t sequence = 0) {
  const SamplingOptions sampling;
  DraftRequest request;
  request.sequence = sequence;
  request.limit = limit;
  request.shape = DraftShape::chain(limit);
  request.sampling = &sampling;
  drafter.draft({}, {&request, 1});
  check_draft(request.draft, 1 << 20);
  return request.draft;
}

TEST(SuffixAutomatonTest, FindsTheLongestRepeatedEnd) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    const Tokens all = repetitive_text(300, seed % 2 == 0 ? 3 : 40, seed);
    SuffixAutomaton automaton;
    Tokens text;
    for (const int32_t token : all) {
      automaton.append(token);
      text.push_back(token);
      const SuffixAutomaton::Match match = automaton.repeated();
      ASSERT_EQ(static_cast<size_t>(match.length), longest_repeat(text)) << text.size();
      if (match.length == 0) continue;
      ASSERT_LT(match.next, text.size());
      ASSERT_TRUE(same_ends(text, static_cast<size_t>(match.length), match.next));
    }
  }
}

TEST(SuffixAutomatonTest, CursorsFindTheLongestEndThatOccurs) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    Random random(seed, "cursor");
    const Tokens first = repetitive_text(200, 5, seed), second = repetitive_text(200, 5, seed + 50);
    SuffixAutomaton automaton;
    SuffixAutomaton::Cursor cursor;
    Tokens read, known;
    size_t next = 0;
    for (const int32_t token : second) {
      // The automaton grows while the cursor stands in it.
      for (size_t i = random.below(3); i > 0 && next < first.size(); --i) {
        if (next == 100) {
          automaton.separate();
          known.push_back(-1);
        }
        automaton.append(first[next]);
        known.push_back(first[next++]);
      }
      automaton.follow(cursor, token);
      read.push_back(token);
      const SuffixAutomaton::Match match = automaton.match(cursor);
      // The longest end of what was read before that occurs, made longer by the token if it can be.
      const auto occurs = [&](size_t length) {
        return std::search(known.begin(), known.end(), read.end() - static_cast<int64_t>(length),
                           read.end()) != known.end();
      };
      const auto length = static_cast<size_t>(match.length);
      ASSERT_TRUE(length == 0 || occurs(length));
      if (length > 0) {
        ASSERT_TRUE(std::equal(read.end() - match.length, read.end(),
                               known.begin() + static_cast<int64_t>(match.next) - match.length));
      }
    }
    // Once nothing is added any more the match is the longest there is after a few tokens.
    for (; next < first.size(); ++next) {
      automaton.append(first[next]);
      known.push_back(first[next]);
    }
    cursor = {};
    read.clear();
    for (const int32_t token : second) {
      automaton.follow(cursor, token);
      read.push_back(token);
      size_t longest = 0;
      while (longest < read.size() &&
             std::search(known.begin(), known.end(), read.end() - static_cast<int64_t>(longest) - 1,
                         read.end()) != known.end()) {
        ++longest;
      }
      ASSERT_EQ(static_cast<size_t>(automaton.match(cursor).length), longest);
    }
  }
}

TEST(NgramDrafterTest, CopiesWhatFollowedTheLastLongestMatch) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    const Tokens all = repetitive_text(400, seed % 2 == 0 ? 4 : 30, seed);
    const auto drafter = make_ngram_drafter(2, 4);
    drafter->start(1);
    Tokens text;
    for (const int32_t token : all) {
      drafter->append(0, {&token, 1});
      text.push_back(token);
      size_t end = 0, length = 5;
      while (end == 0 && --length >= 2) {
        for (size_t e = length; e < text.size(); ++e) {
          if (same_ends(text, length, e)) end = e;
        }
      }
      const Draft draft = ask(*drafter, 6);
      if (end == 0) {
        ASSERT_TRUE(draft.empty());
        continue;
      }
      Tokens expected = text;
      for (size_t i = 0; i < 6; ++i) expected.push_back(expected[end + i]);
      ASSERT_EQ(draft.tokens, Tokens(expected.end() - 6, expected.end())) << text.size();
    }
  }
}

TEST(NgramDrafterTest, KeepsSequencesApart) {
  const auto drafter = make_ngram_drafter();
  drafter->start(2);
  drafter->append(0, Tokens{1, 2, 3, 1, 2});
  drafter->append(1, Tokens{7, 8, 9, 1, 2});
  EXPECT_THAT(ask(*drafter, 2, 0).tokens, ElementsAre(3, 1));
  EXPECT_THAT(ask(*drafter, 2, 1).tokens, IsEmpty());
  drafter->start(1);
  drafter->append(0, Tokens{1, 2});
  EXPECT_THAT(ask(*drafter).tokens, IsEmpty());
  EXPECT_THROW(make_ngram_drafter(0, 3), Error);
  EXPECT_THROW(make_ngram_drafter(4, 3), Error);
}

// Whether a drafter is asked after every token or once after many makes no difference, nor do the
// threads on which several sequences are then read.
TEST(LookupDrafters, ReadLateWhatTheyWouldHaveReadAtOnce) {
  constexpr size_t kSequences = 6;
  const auto drafters = [] {
    std::vector<std::unique_ptr<Drafter>> all;
    all.push_back(make_ngram_drafter());
    all.push_back(make_suffix_drafter());
    all.push_back(make_suffix_drafter(make_suffix_pool()));
    for (const auto& drafter : all) {
      drafter->start(1);
      drafter->append(0, repetitive_text(300, 9, 77));
      drafter->start(kSequences);  // a pool keeps the first text
    }
    return all;
  };
  const auto each_token = drafters(), at_once = drafters();
  for (size_t d = 0; d < each_token.size(); ++d) {
    const SamplingOptions sampling;
    std::vector<DraftRequest> requests(kSequences);
    for (size_t s = 0; s < kSequences; ++s) {
      const Tokens text = repetitive_text(400, 9, s);
      for (const int32_t token : text) {
        each_token[d]->append(s, {&token, 1});
        ask(*each_token[d], kMaxDraft, s);
      }
      at_once[d]->append(s, text);
      requests[s].sequence = s;
      requests[s].sampling = &sampling;
    }
    at_once[d]->draft({}, requests);
    for (size_t s = 0; s < kSequences; ++s) {
      const Draft expected = ask(*each_token[d], kMaxDraft, s);
      EXPECT_FALSE(expected.empty()) << d << " " << s;
      EXPECT_EQ(requests[s].draft.tokens, expected.tokens) << d << " " << s;
      EXPECT_EQ(requests[s].draft.kind, expected.kind) << d << " " << s;
    }
  }
}

TEST(SuffixDrafterTest, GuessesFromEarlierTextsOfThePool) {
  const auto pool = make_suffix_pool();
  const auto drafter = make_suffix_drafter(pool);
  drafter->start(1);
  drafter->append(0, Tokens{1, 2, 3, 4, 5});
  EXPECT_TRUE(ask(*drafter).empty());
  drafter->start(1);  // the first text goes to the pool
  drafter->append(0, Tokens{9, 2, 3});
  EXPECT_THAT(ask(*drafter).tokens, ElementsAre(4, 5));  // and not beyond its end
  const auto other = make_suffix_drafter(pool);
  other->start(1);
  other->append(0, Tokens{3});
  EXPECT_THAT(ask(*other, 1).tokens, ElementsAre(4));
  const auto alone = make_suffix_drafter();
  alone->start(1);
  alone->append(0, Tokens{9, 2, 3});
  EXPECT_TRUE(ask(*alone).empty());
}

TEST(StackedDrafterTest, AsksTheNextWhereOneHasNothingToSay) {
  std::vector<std::unique_ptr<Drafter>> both;
  both.push_back(make_ngram_drafter(3, 3));
  both.push_back(make_ngram_drafter(1, 1));
  const auto stack = make_stacked_drafter(std::move(both));
  EXPECT_EQ(stack->kinds(), 2 * kMatchKinds);
  EXPECT_EQ(stack->costly_kind(), -1);
  EXPECT_EQ(stack->name(), "ngram,ngram");
  stack->start(2);
  stack->append(0, Tokens{1, 2, 3, 4, 1, 2, 3});
  stack->append(1, Tokens{5, 6, 5});
  const SamplingOptions sampling;
  std::vector<DraftRequest> requests(2);
  for (size_t i = 0; i < 2; ++i) {
    requests[i].sequence = i;
    requests[i].sampling = &sampling;
    requests[i].limit = 2;
  }
  stack->draft({}, requests);
  EXPECT_THAT(requests[0].draft.tokens, ElementsAre(4, 1));
  EXPECT_LT(requests[0].draft.kind, kMatchKinds);
  EXPECT_THAT(requests[1].draft.tokens, ElementsAre(6, 5));
  EXPECT_GE(requests[1].draft.kind, kMatchKinds);
}

TEST(Drafts, MalformedOnesAreRefused) {
  const auto refused = [](DraftShape shape, Tokens tokens) {
    EXPECT_THROW(check_draft({std::move(shape), std::move(tokens), {}, 0}, 10), Error);
  };
  refused(DraftShape::chain(1), {10});
  refused(DraftShape::chain(1), {-1});
  refused(DraftShape::chain(2), {1});
  refused(DraftShape::chain(16), Tokens(16, 1));
  refused({{1, -1}, {0, 0}}, {1, 2});
  refused({{-1, -1}, {0, 1}}, {3, 3});
  EXPECT_NO_THROW(check_draft({{{-1, -1, 0}, {0, 1, 0}}, {3, 4, 3}, {}, 0}, 10));
}

// ---- the controller ----

// Times of steps by rows: `slope` of a plain step more for each further row.
StepCost costs(double slope) {
  std::map<int64_t, double> seconds;
  for (int64_t rows = 1; rows <= 16; ++rows) {
    seconds[rows] = 1e-3 * (1 + slope * static_cast<double>(rows - 1));
  }
  return StepCost(std::move(seconds));
}

// Tells the controller of rounds in which `right` of the guesses of a chain came true.
void teach(Controller& controller, int kind, int64_t guesses, int64_t right, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    Draft draft;
    draft.kind = kind;
    for (int64_t g = 0; g < guesses; ++g) draft.add(1, static_cast<int32_t>(g) - 1, 0);
    Tokens tokens(static_cast<size_t>(right), 1);
    tokens.push_back(2);
    const std::vector<Tokens> all = {tokens};
    controller.observe(
        {{&draft, 1}, all, 1 + guesses, 0, controller.step_cost().seconds(1 + guesses)});
  }
}

// A round without guesses; controllers ask for one now and then.
void plain_round(Controller& controller) { teach(controller, 0, 0, 0, 1); }

TEST(ControllerTest, FindsTheBestDepthOfTheSpecificationsTable) {
  // Acceptance 0.8 at each place. Flat steps and drafts of 0.05: the best depth is 8; steps that
  // take 10 % more for each token: 5 (docs/speculation.md derives both). Drafts are free there.
  const auto depth = [](double slope, double draft_level) {
    Controller controller(1, 0, {});
    controller.set_costs(1, costs(slope), draft_level);
    for (int i = 0; i < 200; ++i) {
      // Four of five rounds go on at each place: the same share everywhere.
      Draft draft{DraftShape::chain(kMaxDraft), Tokens(kMaxDraft, 1), {}, 0};
      Random random(static_cast<uint64_t>(i), "rounds");
      Tokens tokens;
      while (tokens.size() < kMaxDraft && random.uniform() < 0.8) tokens.push_back(1);
      tokens.push_back(2);
      const std::vector<Tokens> all = {tokens};
      controller.observe(
          {{&draft, 1}, all, 1, draft_level * kMaxDraft, controller.step_cost().seconds(1)});
    }
    return controller.plan(kMaxDraft).value_or(DraftShape{}).depth();
  };
  EXPECT_NEAR(static_cast<double>(depth(0, 0.05e-3)), 8, 3);
  EXPECT_NEAR(static_cast<double>(depth(0.1, 0.05e-3)), 4, 2);
  EXPECT_LE(depth(1, 0.2e-3), 1);
}

TEST(ControllerTest, StopsWhenGuessesAreWrongAndTriesNowAndThen) {
  Controller controller(1, 0, {});
  controller.set_costs(1, costs(0.2), 0.2e-3);
  teach(controller, 0, 2, 0, 60);
  int64_t tried = 0;
  double lost = 0, plain = 0;
  for (int round = 0; round < 5000; ++round) {
    const DraftShape shape = controller.plan(kMaxDraft).value_or(DraftShape{});
    const auto guesses = static_cast<int64_t>(shape.size());
    if (guesses > 0) {
      ++tried;
      lost += controller.step_cost().seconds(1 + guesses) - controller.step_cost().seconds(1) +
              0.2e-3 * static_cast<double>(guesses);
    }
    plain += controller.step_cost().seconds(1);
    Draft draft{shape, Tokens(shape.size(), 1), {}, 0};
    const std::vector<Tokens> all = {{2}};
    controller.observe({{&draft, 1},
                        all,
                        1 + guesses,
                        0.2e-3 * static_cast<double>(guesses),
                        controller.step_cost().seconds(1 + guesses)});
  }
  EXPECT_GT(tried, 5);
  EXPECT_LT(lost / plain, 0.02);
  // They have become right: after some tries it guesses again.
  for (int round = 0; round < 3000 && controller.acceptance(0).estimate(1, 0) < 0.8; ++round) {
    const auto guesses =
        static_cast<int64_t>(controller.plan(kMaxDraft).value_or(DraftShape{}).size());
    if (guesses > 0) {
      teach(controller, 0, guesses, guesses, 1);
    } else {
      teach(controller, 0, 0, 0, 1);
    }
  }
  plain_round(controller);
  EXPECT_GE(controller.plan(kMaxDraft).value().depth(), 2);
}

TEST(ControllerTest, TrimsFreeGuessesByTheirKind) {
  Controller controller(2, -1, {});
  controller.set_costs(1, costs(0.1), 0);
  teach(controller, 0, 4, 0, 60);
  teach(controller, 1, 10, 10, 60);
  plain_round(controller);
  std::vector<Draft> drafts = {{DraftShape::chain(10), Tokens(10, 1), {}, 0}};
  controller.trim(drafts);
  EXPECT_TRUE(drafts[0].empty());
  drafts = {{DraftShape::chain(10), Tokens(10, 1), {}, 1}};
  controller.trim(drafts);
  EXPECT_GE(drafts[0].tokens.size(), 8u);
  // Guesses drawn from a distribution stay, whatever they are.
  drafts = {{DraftShape::chain(1), {1}, {TokenDistribution{{1}, {1.0}}}, 0}};
  controller.trim(drafts);
  EXPECT_EQ(drafts[0].tokens.size(), 1u);
}

TEST(ControllerTest, LeavesFreeGuessesUnaskedWhileTheyDoNotPay) {
  Controller controller(2, -1, {});
  controller.set_costs(1, costs(0.1), 0);
  const double plain = controller.step_cost().seconds(1), lookup = 0.05 * plain;
  double lost = 0;
  const auto round = [&](bool right) {
    const bool asked = controller.plan(kMaxDraft).has_value();
    const int64_t guesses = asked && right ? 4 : 0;
    Draft draft{DraftShape::chain(guesses), Tokens(static_cast<size_t>(guesses), 1), {}, 0};
    const std::vector<Tokens> all = {Tokens(static_cast<size_t>(guesses) + 1, 1)};
    const double seconds = controller.step_cost().seconds(1 + guesses);
    controller.observe({{&draft, 1}, all, 1 + guesses, asked ? lookup : 0, seconds});
    if (asked && !right) lost += lookup;
    return asked;
  };
  constexpr int kRounds = 1000;
  int asked = 0;
  for (int i = 0; i < kRounds; ++i) asked += round(false) ? 1 : 0;
  EXPECT_GT(asked, kRounds / 50);
  EXPECT_LT(lost, 0.015 * kRounds * plain);
  // Soon after a text starts to repeat itself every round is asked but the plain ones now and then.
  for (int i = 0; i < 60; ++i) round(true);
  asked = 0;
  for (int i = 0; i < kRounds; ++i) asked += round(true) ? 1 : 0;
  EXPECT_GT(asked, kRounds * 9 / 10);
  // Whoever names a number of guesses gets them.
  EXPECT_TRUE(Controller(1, -1, {4, 1}).plan(kMaxDraft));
}

TEST(ControllerTest, GrowsTreesWhereSecondGuessesComeTrue) {
  Controller controller(1, 0, {0, 3});
  controller.set_costs(1, costs(0.01), 0.3e-3);
  for (int i = 0; i < 300; ++i) {
    // The first guess is right half of the time, else the second.
    Draft draft;
    for (int32_t depth = 0, parent = -1; depth < 3; ++depth) {
      const int32_t next = draft.add(1, parent, 0);
      draft.add(3, parent, 1);
      draft.add(4, parent, 2);
      parent = next;
    }
    const std::vector<Tokens> all = {i % 2 == 0 ? Tokens{1, 3, 5} : Tokens{3, 5}};
    controller.observe({{&draft, 1}, all, 10, 0.9e-3, controller.step_cost().seconds(10)});
  }
  EXPECT_FALSE(controller.plan(kMaxDraft));  // time for a plain round
  plain_round(controller);
  const DraftShape shape = controller.plan(kMaxDraft).value();
  EXPECT_FALSE(shape.is_chain());
  for (size_t i = 0; i < shape.size(); ++i) EXPECT_LT(shape.parents[i], static_cast<int32_t>(i));
  EXPECT_THROW(Controller(1, 0, {16, 1}), Error);
  EXPECT_THROW(Controller(1, 0, {0, 9}), Error);
}

TEST(ControllerTest, StepCostsFollowWhatIsMeasured) {
  StepCost cost = costs(0.1);
  EXPECT_DOUBLE_EQ(cost.seconds(1), 1e-3);
  EXPECT_DOUBLE_EQ(StepCost({{1, 1.0}, {3, 2.0}}).seconds(2), 1.5);
  EXPECT_DOUBLE_EQ(StepCost({{1, 1.0}, {3, 2.0}}).seconds(9), 5.0);
  EXPECT_DOUBLE_EQ(StepCost({{1, 2.0}, {3, 1.0}}).seconds(9), 1.0);
  StepCost merged({{1, 1.0}});
  merged.merge(StepCost({{1, 7.0}, {3, 2.0}}));
  EXPECT_DOUBLE_EQ(merged.seconds(2), 1.5);
  for (int i = 0; i < 100; ++i) cost.update(4, 3e-3);
  EXPECT_NEAR(cost.seconds(4), 3e-3, 0.1e-3);
  EXPECT_LT(cost.seconds(1), 1.2e-3);  // one width tells little of the others
  cost.update(4, 1000);                // and an outlier little of its own
  EXPECT_LT(cost.seconds(4), 4e-3);
}

}  // namespace
}  // namespace pronghorn
