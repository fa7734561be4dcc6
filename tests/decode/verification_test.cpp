// The rules of verification on small vocabularies: their distributions are computed exactly, from
// every outcome and its probability, and compared with those of the target; rules that only look
// right must fail the same comparison.
#include "decode/verification.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "base/random.h"

namespace pronghorn {
namespace {

using Text = std::vector<int32_t>;
using Law = std::map<Text, double>;  // of texts

// A random distribution of the next token for each text: a quarter of the tokens is impossible.
class Tables {
 public:
  Tables(int32_t vocabulary, uint64_t seed) : vocabulary_(vocabulary), seed_(seed) {}

  TokenDistribution operator()(const Text& text) const {
    uint64_t hash = 1;
    for (const int32_t token : text) hash = hash * 31 + static_cast<uint64_t>(token) + 1;
    Random random(seed_ * 1000003 + hash, "table");
    TokenDistribution distribution;
    double total = 0;
    for (int32_t token = 0; token < vocabulary_; ++token) {
      if (random.uniform() < 0.25 && !(token + 1 == vocabulary_ && total == 0)) continue;
      distribution.tokens.push_back(token);
      distribution.probabilities.push_back(0.05 + std::pow(random.uniform(), 3));
      total += distribution.probabilities.back();
    }
    for (double& probability : distribution.probabilities) probability /= total;
    return distribution;
  }

 private:
  int32_t vocabulary_;
  uint64_t seed_;
};

constexpr int32_t kVocabulary = 4;

Text joined(Text text, int32_t token) {
  text.push_back(token);
  return text;
}

// Adds to `distribution` what follows `text` under the tables up to `length` tokens.
void complete(const Tables& p, const Text& text, double probability, size_t length,
              Law& distribution) {
  if (text.size() == length) {
    distribution[text] += probability;
    return;
  }
  const TokenDistribution next = p(text);
  for (size_t i = 0; i < next.tokens.size(); ++i) {
    complete(p, joined(text, next.tokens[i]), probability * next.probabilities[i], length,
             distribution);
  }
}

Law target_law(const Tables& p, size_t length) {
  Law distribution;
  complete(p, {}, 1, length, distribution);
  return distribution;
}

// Total variation: half the sum of differences.
double distance(const Law& a, const Law& b) {
  double sum = 0;
  Law all = a;
  for (const auto& [text, probability] : b) all[text] -= probability;
  for (const auto& [text, difference] : all) sum += std::fabs(difference);
  return sum / 2;
}

// Sums of some hundred products of probabilities, each rounded to 1e-16.
constexpr double kRounding = 1e-12;
// Rules that are wrong must differ by more than this for some tables. The smallest seen here is
// 0.1.
constexpr double kWrong = 0.02;

// ---- comparing with the target's own choice (take_matching) ----

Text path_text(const Draft& draft, int32_t node) {
  Text text;
  for (; node >= 0; node = draft.shape.parents[static_cast<size_t>(node)]) {
    text.insert(text.begin(), draft.tokens[static_cast<size_t>(node)]);
  }
  return text;
}

// The distribution of what one round and plain decoding after it write: every sequence of choices
// that the rule can ask for is played through.
Law law_of_matching(const Tables& p, const Draft& draft, size_t length) {
  Law distribution;
  std::vector<size_t> script;  // the choice to make each time it is asked
  while (true) {
    size_t asked = 0;
    double probability = 1;
    std::vector<size_t> options;
    Text text;
    take_matching(
        draft,
        [&](int32_t node) {
          const TokenDistribution next = p(path_text(draft, node));
          if (asked == script.size()) script.push_back(0);
          const size_t choice = script[asked++];
          options.push_back(next.tokens.size());
          probability *= next.probabilities[choice];
          return next.tokens[choice];
        },
        [&](int32_t token) {
          text.push_back(token);
          return text.size() < length;
        });
    complete(p, text, probability, length, distribution);
    script.resize(asked);
    while (!script.empty() && script.back() + 1 == options[script.size() - 1]) script.pop_back();
    if (script.empty()) return distribution;
    ++script.back();
  }
}

Draft random_tree(Random& random, size_t nodes) {
  Draft draft;
  for (int tries = 0; draft.tokens.size() < nodes && tries < 100; ++tries) {
    const auto parent = static_cast<int32_t>(random.below(draft.tokens.size() + 1)) - 1;
    const auto token = static_cast<int32_t>(random.below(kVocabulary));
    int32_t rank = 0;
    bool known = false;
    for (size_t i = 0; i < draft.tokens.size(); ++i) {
      if (draft.shape.parents[i] != parent) continue;
      ++rank;
      known |= draft.tokens[i] == token;
    }
    if (!known) draft.add(token, parent, rank);
  }
  return draft;
}

TEST(Matching, IsExactForAnyChainAndTree) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const Tables p(kVocabulary, seed);
    Random random(seed, "trees");
    const Draft draft = random_tree(random, random.below(7));
    check_draft(draft, kVocabulary);
    EXPECT_LT(distance(law_of_matching(p, draft, 4), target_law(p, 4)), kRounding) << seed;
  }
}

TEST(Matching, StopsWhereTheTextEnds) {
  const Draft draft{DraftShape::chain(3), {1, 2, 3}, {}, 0};
  for (size_t end = 1; end <= 4; ++end) {
    Text text;
    const auto path = take_matching(
        draft, [](int32_t node) { return node + 2; },
        [&](int32_t token) {
          text.push_back(token);
          return text.size() < end;
        });
    // All tokens but the last are followed by another.
    EXPECT_EQ(text.size(), end);
    EXPECT_EQ(path.size(), end - 1);
  }
}

TEST(Matching, EmptyDraftIsPlainDecoding) {
  int calls = 0;
  const auto path = take_matching(
      {},
      [&](int32_t node) {
        EXPECT_EQ(node, -1);
        return ++calls;
      },
      [](int32_t) { return true; });
  EXPECT_TRUE(path.empty());
  EXPECT_EQ(calls, 1);
}

// ---- block verification ----

// What follows one draft: probabilities of (accepted, next), found from the function itself: each
// of its numbers decides by a threshold, which bisection finds.
using Verdicts = std::map<std::pair<size_t, int32_t>, double>;

double bisect(const std::function<bool(double)>& below) {
  double low = 0, high = 1;
  if (!below(0)) return 0;
  for (int i = 0; i < 60; ++i) (below((low + high) / 2) ? low : high) = (low + high) / 2;
  return high > 1 - 1e-15 ? 1 : low;
}

Verdicts verdicts_of(const Draft& draft, std::span<const TokenDistribution> distributions) {
  const size_t g = draft.tokens.size();
  const double never = 1 - 0x1.0p-53;
  Verdicts verdicts;
  double passed_over = 1;  // probability that no longer prefix is accepted
  for (size_t t = g + 1; t-- > 0;) {
    // Accepting t guesses: numbers t ... g - 1 refuse, number t - 1 accepts.
    double share = passed_over;
    if (t > 0) {
      const double threshold = bisect([&](double u) {
        return verify_block(draft, distributions, [&](size_t i) {
                 return i == t - 1 ? u : never;
               }).accepted == t;
      });
      share *= threshold;
      passed_over *= 1 - threshold;
    }
    if (share < 1e-14) continue;
    const auto next = [&](double u) {
      return verify_block(draft, distributions,
                          [&](size_t i) {
                            if (i == g) return u;
                            return t > 0 && i == t - 1 ? 0.0 : never;
                          })
          .next;
    };
    double before = 0;
    for (int32_t token = 0; token < kVocabulary; ++token) {
      const double end =
          token + 1 == kVocabulary ? 1 : bisect([&](double u) { return next(u) <= token; });
      if (end > before) verdicts[{t, token}] += share * (end - before);
      before = std::max(before, end);
    }
  }
  return verdicts;
}

// What a rule does with a draft drawn from q: pairs of a text and its probability.
struct Rule {
  std::function<TokenDistribution(const Text&)> drawn;     // tokens are drawn from this
  std::function<TokenDistribution(const Text&)> reported;  // and judged by this
  bool point = false;                                      // nothing is reported
  bool redraw_from_target = false;                         // a wrong rule: see below
  double discard_below = 0;                                // another: unlikely guesses are omitted
};

void law_of_rule(const Tables& p, const Rule& rule, size_t g, const Draft& draft,
                 double probability, const Text& text, Law& distribution) {
  const size_t length = g + 1;
  bool complete_draft = draft.tokens.size() == g;
  if (!complete_draft) {
    const TokenDistribution next = rule.drawn(text);
    const TokenDistribution reported = rule.point ? TokenDistribution{} : rule.reported(text);
    for (size_t i = 0; i < next.tokens.size(); ++i) {
      if (next.probabilities[i] == 0) continue;
      const double chance = probability * next.probabilities[i];
      Draft longer = draft;
      if (next.probabilities[i] < rule.discard_below) {
        // Judged as it is, without this guess.
        law_of_rule(p, rule, longer.tokens.size(), longer, chance, text, distribution);
        continue;
      }
      longer.add(next.tokens[i], static_cast<int32_t>(draft.tokens.size()) - 1, 0);
      if (!rule.point) longer.distributions.push_back(reported);
      law_of_rule(p, rule, g, longer, chance, joined(text, next.tokens[i]), distribution);
    }
    return;
  }
  std::vector<TokenDistribution> distributions = {p({})};
  Text prefix;
  for (const int32_t token : draft.tokens)
    distributions.push_back(p(prefix = joined(prefix, token)));
  for (const auto& [verdict, chance] : verdicts_of(draft, distributions)) {
    Text emitted(draft.tokens.begin(), draft.tokens.begin() + static_cast<int64_t>(verdict.first));
    if (rule.redraw_from_target && verdict.first < g) {
      complete(p, emitted, probability * chance, length, distribution);
    } else {
      emitted.push_back(verdict.second);
      complete(p, emitted, probability * chance, length, distribution);
    }
  }
}

double rule_distance(const Tables& p, const Rule& rule, size_t g) {
  Law distribution;
  // Discarded guesses make shorter drafts: what they write is completed to the same length.
  Law whole;
  law_of_rule(p, rule, g, {}, 1, {}, distribution);
  for (const auto& [text, probability] : distribution) complete(p, text, probability, g + 1, whole);
  return distance(whole, target_law(p, g + 1));
}

TokenDistribution likeliest(const TokenDistribution& distribution) {
  size_t best = 0;
  for (size_t i = 0; i < distribution.tokens.size(); ++i) {
    if (distribution.probabilities[i] > distribution.probabilities[best]) best = i;
  }
  return {{distribution.tokens[best]}, {1.0}};
}

// Only the likeliest two, renormalised.
TokenDistribution truncated(TokenDistribution distribution) {
  while (distribution.tokens.size() > 2) {
    const auto least =
        std::min_element(distribution.probabilities.begin(), distribution.probabilities.end());
    distribution.tokens.erase(distribution.tokens.begin() +
                              (least - distribution.probabilities.begin()));
    distribution.probabilities.erase(least);
  }
  double total = 0;
  for (const double probability : distribution.probabilities) total += probability;
  for (double& probability : distribution.probabilities) probability /= total;
  return distribution;
}

constexpr uint64_t kTables = 25;

TEST(Blocks, AreExact) {
  for (uint64_t seed = 0; seed < kTables; ++seed) {
    const Tables p(kVocabulary, seed), q(kVocabulary, seed + 1000);
    for (size_t g = 0; g <= 3; ++g) {
      EXPECT_LT(rule_distance(p, {q, q}, g), kRounding) << seed << ", " << g << " guesses";
    }
    // With truncated distributions on either side.
    const auto small_q = [&](const Text& text) { return truncated(q(text)); };
    EXPECT_LT(rule_distance(p, {small_q, small_q}, 2), kRounding) << seed;
    // A guess that is the drafter's only choice.
    const auto best = [&](const Text& text) { return likeliest(q(text)); };
    EXPECT_LT(rule_distance(p, {best, {}, true}, 2), kRounding) << seed;
    EXPECT_LT(rule_distance(p, {q, {}, true}, 2), kRounding) << seed;
    EXPECT_LT(rule_distance(p, {best, best}, 2), kRounding) << seed;
  }
}

// Every one of these looks lossless and is not.
void expect_wrong(const std::function<Rule(const Tables& q)>& make, const char* what) {
  double worst = 0;
  for (uint64_t seed = 0; seed < kTables; ++seed) {
    const Tables p(kVocabulary, seed), q(kVocabulary, seed + 1000);
    worst = std::max(worst, rule_distance(p, make(q), 2));
  }
  EXPECT_GT(worst, kWrong) << what;
}

TEST(Blocks, ComparisonCatchesWrongRules) {
  const auto argmax = [](const Tables& q) {
    return [q](const Text& text) { return likeliest(q(text)); };
  };
  expect_wrong([&](const Tables& q) { return Rule{argmax(q), q}; }, "argmax judged with soft q");
  expect_wrong(
      [](const Tables& q) {
        return Rule{[q](const Text& text) { return truncated(q(text)); }, q};
      },
      "drawn from truncated q, judged with the whole");
  expect_wrong(
      [](const Tables& q) {
        return Rule{q, q, false, true};
      },
      "drawn from p after a rejection");
  expect_wrong(
      [](const Tables& q) {
        return Rule{q, q, false, false, 0.2};
      },
      "sampled guesses discarded for their low q");
}

// Rules that are no variant of the above, one position: the distribution of one token.
TEST(Blocks, ComparisonCatchesSiblingsJudgedByRatiosAndTypicalAcceptance) {
  double worst_siblings = 0, worst_typical = 0;
  for (uint64_t seed = 0; seed < kTables; ++seed) {
    const Tables p_table(kVocabulary, seed), q_table(kVocabulary, seed + 1000);
    const TokenDistribution p = p_table({}), q = q_table({});
    // The two likeliest tokens of q, each accepted with p/q, else p without them is drawn from.
    const TokenDistribution two = truncated(q);
    Law distribution, typical;
    double rest = 1;
    for (const int32_t token : two.tokens) {
      const double accept = std::min(1.0, p.probability(token) / q.probability(token));
      distribution[{token}] += rest * accept;
      rest *= 1 - accept;
    }
    complete(p_table, {}, rest, 1, distribution);
    worst_siblings = std::max(worst_siblings, distance(distribution, target_law(p_table, 1)));
    // A guess is accepted if p(x) > 0.09 exp(-H(p)) (Medusa).
    double entropy = 0;
    for (const double probability : p.probabilities) entropy -= probability * std::log(probability);
    double refused = 0;
    for (size_t i = 0; i < q.tokens.size(); ++i) {
      const bool accepted = p.probability(q.tokens[i]) > std::min(0.3, 0.09 * std::exp(-entropy));
      (accepted ? typical[{q.tokens[i]}] : refused) += q.probabilities[i];
    }
    complete(p_table, {}, refused, 1, typical);
    worst_typical = std::max(worst_typical, distance(typical, target_law(p_table, 1)));
  }
  EXPECT_GT(worst_siblings, kWrong);
  EXPECT_GT(worst_typical, kWrong);
}

// A token that is impossible for the model never comes, even where the numbers are 0.
TEST(Blocks, NeverAcceptTheImpossible) {
  const TokenDistribution p{{0, 1}, {0.5, 0.5}}, q{{2, 3}, {0.5, 0.5}};
  Draft draft{DraftShape::chain(2), {2, 3}, {q, q}, 0};
  const std::vector<TokenDistribution> distributions = {p, p, p};
  for (const double u : {0.0, 0.3, 1 - 0x1.0p-53}) {
    const BlockVerdict verdict = verify_block(draft, distributions, [u](size_t) { return u; });
    EXPECT_EQ(verdict.accepted, 0u);
    EXPECT_LE(verdict.next, 1);
  }
}

// The rule with the engine's own random numbers: a million drafts of three tokens.
TEST(Blocks, AMillionDrawsFollowTheLaw) {
  constexpr int32_t kTokens = 8;
  constexpr uint64_t kDraws = 1000000;
  const Tables p(kTokens, 7), q(kTokens, 1007);
  // The tables, looked up rather than made anew. Guesses depend on the text's last token only.
  std::vector<TokenDistribution> p_after, q_after;
  for (int32_t token = 0; token <= kTokens; ++token) {
    p_after.push_back(p({token}));
    q_after.push_back(q({token}));
  }
  const auto chi_square = [&](bool wrong) {
    std::vector<double> counts(kTokens * kTokens), accepted(4);
    std::vector<TokenDistribution> distributions(4);
    for (uint64_t draw = 0; draw < kDraws; ++draw) {
      const auto uniform = [draw](const char* purpose, uint64_t i) {
        return unit_interval(philox(17, draw << 8 | i, stream_id(purpose)));
      };
      Draft draft;
      int32_t last = kTokens;
      distributions[0] = p_after[static_cast<size_t>(last)];
      for (size_t i = 0; i < 3; ++i) {
        const TokenDistribution& distribution = q_after[static_cast<size_t>(last)];
        last = distribution.draw(uniform("draft", i));
        draft.add(last, static_cast<int32_t>(i) - 1, 0);
        draft.distributions.push_back(distribution);
        distributions[i + 1] = p_after[static_cast<size_t>(last)];
      }
      const BlockVerdict verdict = verify_block(draft, distributions, [&](size_t i) {
        // The wrong one reuses the drafter's noise.
        return uniform(wrong ? "draft" : "judge", i);
      });
      Text text(draft.tokens.begin(),
                draft.tokens.begin() + static_cast<int64_t>(verdict.accepted));
      text.push_back(verdict.next);
      if (text.size() == 1) {
        text.push_back(p_after[static_cast<size_t>(text[0])].draw(uniform("later", 0)));
      }
      counts[static_cast<size_t>(text[0] * kTokens + text[1])] += 1;
    }
    double sum = 0;
    int bins = 0;
    for (int32_t a = 0; a < kTokens; ++a) {
      for (int32_t b = 0; b < kTokens; ++b) {
        const double expected = kDraws * p_after[kTokens].probability(a) *
                                p_after[static_cast<size_t>(a)].probability(b);
        const double count = counts[static_cast<size_t>(a * kTokens + b)];
        if (expected == 0) {
          EXPECT_EQ(count, 0);
          continue;
        }
        sum += (count - expected) * (count - expected) / expected;
        ++bins;
      }
    }
    // Wilson and Hilferty's normal approximation: deviations from the mean of chi-square.
    const double df = bins - 1, spread = 2 / (9 * df);
    return (std::cbrt(sum / df) - (1 - spread)) / std::sqrt(spread);
  };
  // A false alarm in a million is at 4.9 deviations. One million draws show a total variation of
  // about 0.003 on some 40 bins.
  EXPECT_LT(chi_square(false), 4.9);
  EXPECT_GT(chi_square(true), 4.9);
}

}  // namespace
}  // namespace pronghorn
