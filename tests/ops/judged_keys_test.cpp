// Caches that drop the rows that queries look at least, SnapKV's and H2O's, against naive float64
// forms of the rules.
#include "ops/judged_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/cpu/cpu_features.h"
#include "base/error.h"
#include "base/random.h"
#include "support/errors.h"
#include "support/machine.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::equal_steps;
using testing_support::error_of;
using Doubles = std::vector<double>;

constexpr JournalSlot kSlot{0, 0};
// f32 sums of some hundred terms.
constexpr double kTolerance = 2e-5;

CacheOptions snapkv(int64_t rows) {
  CacheOptions cache;
  cache.snapkv = rows;
  return cache;
}

CacheOptions heavy_hitters(int64_t rows) {
  CacheOptions cache;
  cache.h2o = rows;
  return cache;
}

struct Text {
  Text(const AttentionOptions& chosen, int64_t tokens) : options(chosen) {
    const auto random = [&](int64_t columns, const char* name) {
      Random numbers(1, name);
      Tensor tensor = Tensor::empty({tokens, columns});
      for (float& value : tensor.values()) value = static_cast<float>(numbers.uniform(-2, 2));
      return tensor;
    };
    q = random(options.heads * options.head_dim, "q");
    k = random(options.kv_heads * options.head_dim, "k");
    if (!options.value_in_key) v = random(options.kv_heads * options.head_dim, "v");
  }

  std::shared_ptr<const StateLayout> layout(const CacheOptions& cache, int64_t prefix = 0) const {
    auto layout = std::make_shared<StateLayout>();
    layout->layers.push_back({attention_journal(options)});
    layout->prefix = prefix;
    return with_cache(layout, cache);
  }
  SequenceState fresh(const CacheOptions& cache) const { return SequenceState(layout(cache)); }

  // The next rows of the text for each of the states, in one batch.
  std::vector<float> run(const std::vector<SequenceState*>& states, int64_t count) const {
    Batch batch;
    const auto rows = count * std::ssize(states);
    Tensor own_q = Tensor::empty({rows, q.columns()}), own_k = Tensor::empty({rows, k.columns()});
    Tensor own_v = v.defined() ? Tensor::empty({rows, v.columns()}) : Tensor();
    for (SequenceState* state : states) {
      const int64_t first = batch.rows(), from = state->journal(0, 0).length();
      own_q.row_slice(first, count).copy_from(q.row_slice(from, count));
      own_k.row_slice(first, count).copy_from(k.row_slice(from, count));
      if (v.defined()) own_v.row_slice(first, count).copy_from(v.row_slice(from, count));
      for (int64_t i = 0; i < count; ++i) {
        batch.positions.push_back(static_cast<int32_t>(from + i));
      }
      batch.segments.push_back({state, first, count});
    }
    const Tensor out = attention({}, own_q, own_k, own_v, options, batch, kSlot);
    for (SequenceState* state : states) state->advance(count);
    return {out.values().begin(), out.values().end()};
  }

  std::vector<float> decode(SequenceState& state, const std::vector<int64_t>& steps) const {
    std::vector<float> all;
    for (const int64_t step : steps) {
      const std::vector<float> out = run({&state}, step);
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  }

  double score(int64_t row, int64_t head, int64_t key) const {
    const int64_t dim = options.head_dim, kv = head / (options.heads / options.kv_heads);
    const float *a = q.row(row) + head * dim, *b = k.row(key) + kv * dim;
    double sum = 0;
    for (int64_t c = 0; c < dim; ++c) sum += double{a[c]} * double{b[c]};
    sum /= std::sqrt(static_cast<double>(dim));
    return options.soft_cap > 0 ? options.soft_cap * std::tanh(sum / options.soft_cap) : sum;
  }

  AttentionOptions options;
  Tensor q, k, v;
};

// Which rule, and what it keeps: at every `interval`-th row, of those before the last `recent`.
struct Rule {
  int64_t keep, recent, interval, observed, neighbours;
  bool accumulates;
};
const Rule kSnap = {20, 64, 256, 32, 3, false};
const Rule kHeavy = {70, 128, 64, 64, 0, true};

struct Naive {
  Doubles out;
  std::vector<int64_t> held;  // rows, after the last token
};

Naive naive(const Text& text, const Rule& rule, int64_t tokens) {
  const AttentionOptions& options = text.options;
  const int64_t dim = options.head_dim, group = options.heads / options.kv_heads;
  const int64_t width = options.value_dim > 0 ? options.value_dim : dim;
  Naive result;
  std::vector<int64_t>& held = result.held;
  std::vector<Doubles> given;  // of each token: its shares by row, added up over heads
  Doubles mass(static_cast<size_t>(tokens));  // of each row: what all judgements gave it
  for (int64_t t = 0; t < tokens; ++t) {
    if (t > 0 && t % rule.interval == 0) {
      Doubles votes(static_cast<size_t>(t));
      for (int64_t i = t - rule.observed; i < t; ++i) {
        for (const int64_t row : held) {
          votes[static_cast<size_t>(row)] +=
              given[static_cast<size_t>(i)][static_cast<size_t>(row)];
        }
      }
      if (rule.accumulates) {
        for (const int64_t row : held) {
          votes[static_cast<size_t>(row)] += mass[static_cast<size_t>(row)];
          mass[static_cast<size_t>(row)] = votes[static_cast<size_t>(row)];
        }
      }
      std::vector<int64_t> old, rest;
      for (const int64_t row : held) (row < t - rule.recent ? old : rest).push_back(row);
      if (t - rule.recent > rule.keep) {
        std::vector<std::pair<double, size_t>> order;
        for (size_t i = 0; i < old.size(); ++i) {
          double most = 0;
          for (size_t j = 0; j < old.size(); ++j) {
            if (std::abs(static_cast<int64_t>(i) - static_cast<int64_t>(j)) > rule.neighbours) {
              continue;
            }
            most = std::max(most, votes[static_cast<size_t>(old[j])]);
          }
          order.emplace_back(-most, i);
        }
        std::ranges::sort(order);
        order.resize(static_cast<size_t>(rule.keep));
        held.clear();
        for (const auto& [vote, i] : order) held.push_back(old[i]);
        std::ranges::sort(held);
        held.insert(held.end(), rest.begin(), rest.end());
      }
    }
    held.push_back(t);
    given.emplace_back(static_cast<size_t>(tokens));
    for (int64_t head = 0; head < options.heads; ++head) {
      Doubles p;
      for (const int64_t row : held) p.push_back(std::exp(text.score(t, head, row)));
      const double sum = std::accumulate(p.begin(), p.end(), 0.0);
      for (size_t i = 0; i < held.size(); ++i) {
        given.back()[static_cast<size_t>(held[i])] += p[i] / sum;
      }
      for (int64_t c = 0; c < width; ++c) {
        double total = 0;
        for (size_t i = 0; i < held.size(); ++i) {
          const float* value = options.value_in_key ? text.k.row(held[i]) + head / group * dim
                                                    : text.v.row(held[i]) + head / group * width;
          total += p[i] / sum * double{value[c]};
        }
        result.out.push_back(total);
      }
    }
  }
  return result;
}

std::vector<int64_t> held_rows(SequenceState& state) {
  const Journal& journal = state.journal(0, 0);
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < journal.kept(); ++i) rows.push_back(journal.position(i));
  for (int64_t i = journal.first_row(); i < journal.length(); ++i) {
    rows.push_back(journal.position(i));
  }
  return rows;
}

void expect_close(const std::vector<float>& got, const Doubles& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::fabs(got[i] - want[i]));
  EXPECT_LT(worst, kTolerance * 2) << what;  // values are below 2
}

const std::vector<AttentionOptions>& shapes() {
  static const std::vector<AttentionOptions> all = {
      {.heads = 4, .kv_heads = 2, .head_dim = 12, .soft_cap = 3},
      {.heads = 3, .head_dim = 14, .value_dim = 8, .value_in_key = true}};
  return all;
}

class JudgedKeysTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { set_cpu_instruction_set(GetParam()); }
  void TearDown() override { set_cpu_instruction_set(cpu_instruction_sets().back()); }
};

TEST_P(JudgedKeysTest, KeepWhatTheRulesKeep) {
  constexpr int64_t kTokens = 600;
  for (const AttentionOptions& options : shapes()) {
    const Text text(options, kTokens);
    for (const auto& [rule, cache] :
         {std::pair(kSnap, snapkv(kSnap.keep)), {kHeavy, heavy_hitters(kHeavy.keep)}}) {
      const Naive want = naive(text, rule, kTokens);
      std::vector<float> ones;
      for (const auto& steps : std::vector<std::vector<int64_t>>{equal_steps(kTokens, 1),
                                                                 equal_steps(kTokens, 16),
                                                                 {7, 9, 240, 300, 1, 43},
                                                                 {kTokens}}) {
        SequenceState state = text.fresh(cache);
        const std::vector<float> got = text.decode(state, steps);
        const std::string what = fmt::format("keep {}, steps {}", rule.keep, fmt::join(steps, " "));
        expect_close(got, want.out, what);
        EXPECT_EQ(held_rows(state), want.held) << what;
        if (steps.front() == 1) ones = got;
        if (steps.front() == 16) {
          EXPECT_EQ(got, ones) << what;
        }
      }
    }
  }
}

// Keys in any type, in batches with other caches, on any number of threads: the same bits.
TEST_P(JudgedKeysTest, AreTheSameBesideOthers) {
  constexpr int64_t kTokens = 330;
  const Text text({.heads = 2, .kv_heads = 1, .head_dim = 32}, kTokens);
  for (const DType type : {DType::f32, DType::bf16, DType::q8_0}) {
    CacheOptions snap = snapkv(20), heavy = heavy_hitters(20);
    snap.type = heavy.type = type;
    SequenceState a = text.fresh(snap), b = text.fresh(heavy), plain = text.fresh({});
    const std::vector<float> one = text.decode(a, equal_steps(kTokens, 5)),
                             other = text.decode(b, equal_steps(kTokens, 5)),
                             whole = text.decode(plain, equal_steps(kTokens, 5));
    EXPECT_NE(one, whole);
    EXPECT_NE(other, whole);
    for (const int threads : {1, 4}) {
      const testing_support::Threads scope(threads);
      SequenceState some[] = {text.fresh(snap), text.fresh(heavy), text.fresh({})};
      std::vector<float> got[3];
      for (int64_t done = 0; done < kTokens; done += 11) {
        const std::vector<float> out = text.run({&some[0], &some[1], &some[2]}, 11);
        const auto width = static_cast<std::ptrdiff_t>(out.size() / 3);
        for (std::ptrdiff_t i = 0; i < 3; ++i) {
          got[i].insert(got[i].end(), out.begin() + i * width, out.begin() + (i + 1) * width);
        }
      }
      EXPECT_EQ(got[0], one) << threads << " threads";
      EXPECT_EQ(got[1], other) << threads << " threads";
      EXPECT_EQ(got[2], whole) << threads << " threads";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, JudgedKeysTest, testing::ValuesIn(cpu_instruction_sets()),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// With room for the whole text nothing is dropped, and nothing changes.
TEST(JudgedKeys, ChangeNothingWhileThereIsRoom) {
  constexpr int64_t kTokens = 300;
  const Text text(shapes()[0], kTokens);
  SequenceState plain = text.fresh({});
  const std::vector<float> want = text.decode(plain, equal_steps(kTokens, 12));
  for (const CacheOptions& cache : {snapkv(kTokens), heavy_hitters(kTokens)}) {
    SequenceState state = text.fresh(cache);
    EXPECT_EQ(text.decode(state, equal_steps(kTokens, 5)), want);
  }
}

// Rows that all look at stay, wherever they are; the first ones do if they are the model's prefix.
TEST(JudgedKeys, RowsThatAreLookedAtStay) {
  constexpr int64_t kTokens = 700;
  const std::vector<int64_t> marked = {0, 5, 63, 64, 130, 200, 411};
  Text text({.heads = 2, .kv_heads = 1, .head_dim = 2}, kTokens);
  std::ranges::fill(text.q.values(), 3.0f);
  for (int64_t i = 0; i < kTokens; ++i) {
    const bool looked_at = std::ranges::count(marked, i) > 0;
    std::ranges::fill(text.k.row_slice(i, 1).values(), looked_at ? 2.0f : -2.0f);
  }
  for (const CacheOptions& cache : {snapkv(50), heavy_hitters(7)}) {
    SequenceState state = text.fresh(cache);
    text.decode(state, equal_steps(kTokens, 14));
    const std::vector<int64_t> held = held_rows(state);
    for (const int64_t row : marked) EXPECT_EQ(std::ranges::count(held, row), 1) << row;
  }
  SequenceState prefixed(text.layout(heavy_hitters(1), 3));
  text.k.row_slice(0, 3).values()[0] = -9;  // looked at least of all
  text.decode(prefixed, equal_steps(kTokens, 14));
  const std::vector<int64_t> held = held_rows(prefixed);
  EXPECT_TRUE(std::ranges::equal(std::span(held).first(3), std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(prefixed.journal(0, 0).kept(), 4);
}

TEST(JudgedKeys, TakeConstantMemoryAsPredicted) {
  const Text text(shapes()[0], 2000);
  for (const CacheOptions& cache : {snapkv(70), heavy_hitters(40)}) {
    SequenceState state = text.fresh(cache);
    const JournalShape shape = state.journal(0, 0).shape();
    int64_t most = 0, last = 0;
    for (int64_t done = 0; done < 2000; done += 20) {
      text.decode(state, {20});
      const int64_t bytes = state.bytes();
      EXPECT_EQ(bytes, Journal::predicted_bytes(shape, done + 20)) << done + 20;
      (done < 1000 ? most : last) = std::max(done < 1000 ? most : last, bytes);
    }
    EXPECT_LE(last, most);
    EXPECT_LT(2 * most, Journal::predicted_bytes(attention_journal(text.options), 2000));
  }
}

// Saved, forked and taken back as far as rows have not been weighed since: the same bits.
TEST(JudgedKeys, SavedForkedAndTakenBack) {
  constexpr int64_t kTokens = 700;
  const Text text(shapes()[0], kTokens);
  for (const CacheOptions& cache : {snapkv(30), heavy_hitters(30)}) {
    SequenceState straight = text.fresh(cache);
    const std::vector<float> want = text.decode(straight, equal_steps(kTokens, 10));
    const auto rest = [&](int64_t from) {
      const auto width = static_cast<std::ptrdiff_t>(want.size() / kTokens);
      return std::vector<float>(want.begin() + from * width, want.end());
    };
    for (const int64_t at : std::vector<int64_t>{50, 250, 256, 512, 520, 570, 650}) {
      SequenceState steps = text.fresh(cache);
      text.decode(steps, equal_steps(at, 10));
      const std::string saved = steps.save();
      SequenceState loaded =
          SequenceState::load(std::as_bytes(std::span(saved)), text.layout(cache), "test");
      EXPECT_EQ(loaded.save(), saved) << at;
      SequenceState fork = steps;
      EXPECT_EQ(text.decode(loaded, equal_steps(kTokens - at, 10)), rest(at)) << at;
      text.decode(fork, {10});
      const int64_t judged = fork.journal(0, 0).judged();
      if (judged <= at) {
        fork.truncate(at);
        EXPECT_EQ(text.decode(fork, equal_steps(kTokens - at, 10)), rest(at)) << at;
      } else {
        EXPECT_THAT(error_of([&] { fork.truncate(at); }), HasSubstr("evicted")) << at;
      }
      EXPECT_EQ(text.decode(steps, equal_steps(kTokens - at, 10)), rest(at)) << at;
    }
    // As far back as that: rows look at what was kept.
    const int64_t judged = straight.journal(0, 0).judged();
    EXPECT_GT(judged, 500);
    EXPECT_THROW(straight.truncate(judged - 1), Error);
    straight.truncate(judged);
    EXPECT_EQ(text.decode(straight, equal_steps(kTokens - judged, 10)), rest(judged));
  }
}

TEST(JudgedKeys, AreChecked) {
  const Text text(shapes()[0], 100);
  CacheOptions both = snapkv(4), paged = heavy_hitters(4), window = snapkv(4);
  both.h2o = 4;
  paged.quest_pages = 1;
  window.window = 9;
  for (const CacheOptions& cache : {both, paged, window, snapkv(-1), heavy_hitters(INT64_MAX)}) {
    EXPECT_THROW(text.layout(cache), Error);
  }
  EXPECT_NE(text.layout(snapkv(4))->fingerprint, text.layout(heavy_hitters(4))->fingerprint);
  // Models without such attention, and rows that are no chain.
  EXPECT_THAT(error_of([] { with_cache(std::make_shared<StateLayout>(), snapkv(4)); }),
              HasSubstr("no layer"));
  SequenceState state = text.fresh(snapkv(4));
  Batch tree;
  tree.positions = {0, 1, 1};
  tree.segments = {{&state, 0, 3, Mask::causal, {-1, 0, 0}}};
  EXPECT_THROW(attention({}, text.q.row_slice(0, 3), text.k.row_slice(0, 3), text.v.row_slice(0, 3),
                         text.options, tree, kSlot),
               Error);
  EXPECT_EQ(state.journal(0, 0).length(), 0);
}

}  // namespace
}  // namespace pronghorn
