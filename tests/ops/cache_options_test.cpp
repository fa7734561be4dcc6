// How a cache keeps keys and values, whatever the model: StreamingLLM's sinks and window, and
// Quest's pages, against naive float64 forms of the papers' rules.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "base/error.h"
#include "base/random.h"
#include "ops/attention.h"
#include "ops/pointwise.h"
#include "ops/rope.h"
#include "support/machine.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using testing_support::equal_steps;
using Doubles = std::vector<double>;

constexpr double kTheta = 50;
constexpr int64_t kLayers = 3;  // of which Quest leaves the first two as they are
constexpr JournalSlot kSlot{kLayers - 1, 0};
// f32 sums of some hundred terms, turned twice.
constexpr double kTolerance = 2e-5;

Tensor random_rows(int64_t rows, int64_t columns, std::string_view name) {
  Random random(1, std::string(name));
  Tensor tensor = Tensor::empty({rows, columns});
  for (float& value : tensor.values()) value = static_cast<float>(random.uniform(-1, 1));
  return tensor;
}

// Rows before they are turned, and as attention is given them.
struct Text {
  Text(const AttentionOptions& chosen, int64_t tokens) : options(chosen) {
    const int64_t rotary = options.head_dim - options.rope_begin;
    options.angles = rotary_angles(kTheta, rotary);
    plain_q = random_rows(tokens, options.heads * options.head_dim, "q");
    plain_k = random_rows(tokens, options.kv_heads * options.head_dim, "k");
    if (!options.value_in_key) {
      v = random_rows(tokens, options.kv_heads * options.head_dim, "v");
    }
    q = turned(plain_q);
    k = turned(plain_k);
  }

  Tensor turned(const Tensor& plain) const {
    std::vector<int32_t> positions(static_cast<size_t>(plain.rows()));
    std::iota(positions.begin(), positions.end(), 0);
    return turned(plain, positions);
  }
  Tensor turned(const Tensor& plain, const std::vector<int32_t>& positions) const {
    const Tensor all = plain.clone();
    const int64_t width = options.head_dim - options.rope_begin;
    for (int64_t c = options.rope_begin; c < plain.columns(); c += options.head_dim) {
      const Tensor part = rope({}, plain.column_slice(c, width), positions, width, options.angles);
      all.column_slice(c, width).copy_from(part);
    }
    return all;
  }

  std::shared_ptr<const StateLayout> layout(const CacheOptions& cache) const {
    auto layout = std::make_shared<StateLayout>();
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      layout->layers.push_back({attention_journal(options)});
    }
    return with_cache(layout, cache);
  }
  SequenceState fresh(const CacheOptions& cache) const { return SequenceState(layout(cache)); }

  // What a state reads next.
  struct Part {
    SequenceState* state;
    std::vector<int64_t> rows;          // of the text
    std::vector<int32_t> parents = {};  // of a tree
  };

  // A batch of them: outputs of all rows.
  Tensor run(const std::vector<Part>& parts) const {
    Batch batch;
    std::vector<int32_t> rows;
    for (const Part& part : parts) {
      const auto count = std::ssize(part.rows);
      batch.segments.push_back({part.state, batch.rows(), count, Mask::causal, part.parents});
      const auto before = static_cast<int32_t>(part.state->length());
      std::vector<int32_t> depths;
      for (int32_t i = 0; i < count; ++i) {
        const int32_t parent = part.parents.empty() ? i - 1 : part.parents[static_cast<size_t>(i)];
        depths.push_back(parent < 0 ? 0 : depths[static_cast<size_t>(parent)] + 1);
        batch.positions.push_back(before + depths.back());
      }
      rows.insert(rows.end(), part.rows.begin(), part.rows.end());
    }
    const Tensor own_q = turned(embedding({}, plain_q, rows), batch.positions);
    const Tensor own_k = turned(embedding({}, plain_k, rows), batch.positions);
    const Tensor own_v = v.defined() ? embedding({}, v, rows) : Tensor();
    const Tensor out = attention({}, own_q, own_k, own_v, options, batch, kSlot);
    const CheckedBatch checked(batch);
    for (const Segment& segment : checked.segments()) {
      if (!segment.parents.empty()) continue;
      for (int64_t layer = 0; layer + 1 < kLayers; ++layer) {
        segment.state->journal(layer, 0).append(checked.positions(segment));
      }
      segment.state->advance(segment.length);
    }
    return out;
  }

  // The next `count` rows of the text.
  Tensor run(SequenceState& state, int64_t count) const {
    std::vector<int64_t> rows(static_cast<size_t>(count));
    std::iota(rows.begin(), rows.end(), state.length());
    return run({{&state, rows}});
  }

  std::vector<float> decode(SequenceState& state, const std::vector<int64_t>& steps) const {
    std::vector<float> all;
    for (const int64_t step : steps) {
      const Tensor out = run(state, step);
      all.insert(all.end(), out.values().begin(), out.values().end());
    }
    return all;
  }

  AttentionOptions options;
  Tensor plain_q, plain_k, q, k, v;
};

// One head's row turned to a position.
Doubles at_position(const Text& text, const float* row, int64_t position) {
  Doubles x(row, row + text.options.head_dim);
  const std::vector<double>& frequencies = text.options.angles->frequencies;
  const size_t half = frequencies.size(), begin = static_cast<size_t>(text.options.rope_begin);
  for (size_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * frequencies[i];
    double &a = x[begin + i], &b = x[begin + half + i];
    const double turned = a * std::cos(angle) - b * std::sin(angle);
    b = a * std::sin(angle) + b * std::cos(angle);
    a = turned;
  }
  return x;
}

// Row t attends to `seen`, ascending, of which the last is t; each at its position.
void attend(const Text& text, int64_t t, int64_t head, const std::vector<int64_t>& seen,
            const std::vector<int64_t>& positions, Doubles& out) {
  const AttentionOptions& options = text.options;
  const int64_t dim = options.head_dim, kv = head / (options.heads / options.kv_heads);
  const int64_t width = options.value_dim > 0 ? options.value_dim : dim;
  const Doubles query = at_position(text, text.plain_q.row(t) + head * dim, positions.back());
  Doubles p;
  for (size_t i = 0; i < seen.size(); ++i) {
    const Doubles key = at_position(text, text.plain_k.row(seen[i]) + kv * dim, positions[i]);
    p.push_back(std::exp(std::inner_product(query.begin(), query.end(), key.begin(), 0.0) /
                         std::sqrt(static_cast<double>(dim))));
  }
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (int64_t c = 0; c < width; ++c) {
    double total = 0;
    for (size_t i = 0; i < seen.size(); ++i) {
      // Values that are in keys are the part that is not turned.
      const float* value =
          options.value_in_key ? text.k.row(seen[i]) + kv * dim : text.v.row(seen[i]) + kv * width;
      total += p[i] / sum * double{value[c]};
    }
    out.push_back(total);
  }
}

void expect_close(const std::vector<float>& got, const Doubles& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  double largest = 0, worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::fabs(want[i]));
    worst = std::max(worst, std::fabs(double{got[i]} - want[i]));
  }
  EXPECT_LT(worst, kTolerance * largest) << what;
}

class CacheOptionsTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { set_cpu_instruction_set(GetParam()); }
  void TearDown() override { set_cpu_instruction_set(cpu_instruction_sets().back()); }
};

CacheOptions rolling(int64_t window, int64_t sinks) {
  CacheOptions cache;
  cache.window = window;
  cache.sinks = sinks;
  return cache;
}

const std::vector<AttentionOptions>& shapes() {
  static const std::vector<AttentionOptions> all = {
      {.heads = 4, .kv_heads = 2, .head_dim = 12},
      {.heads = 3, .head_dim = 14, .value_dim = 8, .value_in_key = true, .rope_begin = 8}};
  return all;
}

// The rule of arXiv 2309.17453, section 3.2: a cache of the first rows and the last ones, positions
// counted in the cache.
Doubles streaming(const Text& text, int64_t tokens, int64_t window, int64_t sinks) {
  Doubles out;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int64_t> seen, positions;
    for (int64_t j = 0; j <= t; ++j) {
      if (j >= sinks && j <= t - window) continue;
      positions.push_back(std::ssize(seen));
      seen.push_back(j);
    }
    for (int64_t head = 0; head < text.options.heads; ++head) {
      attend(text, t, head, seen, positions, out);
    }
  }
  return out;
}

TEST_P(CacheOptionsTest, StreamsEqualThePapersRule) {
  constexpr int64_t kTokens = 400;
  for (const AttentionOptions& options : shapes()) {
    const Text text(options, kTokens);
    for (const auto& [window, sinks] : std::vector<std::pair<int64_t, int64_t>>{
             {20, 4}, {1, 0}, {70, 66}, {150, 4}, {5, 0}, {500, 4}}) {
      const Doubles want = streaming(text, kTokens, window, sinks);
      const std::string what = fmt::format("window {}, {} sinks", window, sinks);
      std::vector<float> ones;
      for (const auto& steps : std::vector<std::vector<int64_t>>{equal_steps(kTokens, 1),
                                                                 equal_steps(kTokens, 16),
                                                                 {7, 9, 11, 100, 200, 1, 72},
                                                                 {kTokens}}) {
        SequenceState state = text.fresh(rolling(window, sinks));
        const std::vector<float> got = text.decode(state, steps);
        expect_close(got, want, fmt::format("{}, steps {}", what, fmt::join(steps, " ")));
        if (steps.front() == 1) ones = got;
        if (steps.front() == 16) {
          EXPECT_EQ(got, ones) << what;
        }
      }
    }
  }
}

TEST_P(CacheOptionsTest, StreamsTakeConstantMemory) {
  const Text text(shapes()[0], 3000);
  SequenceState state = text.fresh(rolling(100, 4));
  text.decode(state, equal_steps(600, 16));
  const int64_t journal_bytes = state.journal(kSlot.layer, 0).bytes();
  int64_t most = 0;
  for (int64_t i = 0; i < 150; ++i) {
    text.decode(state, {16});
    most = std::max(most, state.journal(kSlot.layer, 0).bytes());
  }
  EXPECT_LE(most, journal_bytes + 64 * 4 * (2 * 24 + 1));  // a page more or less
  EXPECT_EQ(state.length(), 3000);
}

// Nodes of a tree with branches give the bits of the chains of their ancestors, on any number of
// threads, beside sequences with other caches.
void check_tree(const Text& text, const CacheOptions& cache, int64_t before,
                const std::vector<int32_t>& parents) {
  SequenceState base = text.fresh(cache);
  text.decode(base, {before - 3, 3});
  std::vector<int64_t> rows;
  for (size_t i = 0; i < parents.size(); ++i) rows.push_back(before + static_cast<int64_t>(i));
  std::vector<SequenceState> chains;
  std::vector<float> want;
  for (size_t i = 0; i < parents.size(); ++i) {
    SequenceState state = parents[i] < 0 ? base : chains[static_cast<size_t>(parents[i])];
    const Tensor out = text.run({{&state, {rows[i]}}});
    want.insert(want.end(), out.values().begin(), out.values().end());
    chains.push_back(std::move(state));
  }
  for (const int threads : {1, 4}) {
    const testing_support::Threads scope(threads);
    SequenceState tree = base, plain = text.fresh({}), other = text.fresh(rolling(9, 1));
    CacheOptions pages;
    pages.quest_pages = 4;
    SequenceState paged = text.fresh(pages);
    for (SequenceState* state : {&plain, &other, &paged}) text.decode(*state, {70});
    std::vector<float> alone;
    for (const SequenceState& one : {plain, other, paged}) {
      SequenceState state = one;
      const Tensor out = text.run({{&state, {100, 101, 102}}});
      alone.insert(alone.end(), out.values().begin(), out.values().end());
    }
    const Tensor out = text.run({{&tree, rows, parents},
                                 {&plain, {100, 101, 102}},
                                 {&other, {100, 101, 102}},
                                 {&paged, {100, 101, 102}}});
    const std::span<const float> all = out.values();
    EXPECT_TRUE(std::ranges::equal(all.first(want.size()), want)) << threads << " threads";
    EXPECT_TRUE(std::ranges::equal(all.subspan(want.size()), alone)) << threads << " threads";
  }
}

std::vector<int32_t> branches(int32_t nodes) {
  std::vector<int32_t> parents;
  Random random(3, "tree");
  for (int32_t i = 0; i < nodes; ++i) {
    const auto any = static_cast<int32_t>(random.below(static_cast<uint64_t>(i) + 1)) - 1;
    parents.push_back(random.uniform() < 0.8 ? i - 1 : any);
  }
  return parents;
}

TEST_P(CacheOptionsTest, TreesRollAsChainsDo) {
  for (const AttentionOptions& options : shapes()) {
    const Text text(options, 260);
    check_tree(text, rolling(30, 4), 119, branches(20));
    check_tree(text, rolling(90, 2), 119, branches(40));
    check_tree(text, rolling(16, 70), 62, branches(30));
  }
}

TEST_P(CacheOptionsTest, SavedStatesRollOn) {
  const Text text(shapes()[0], 200);
  for (const CacheOptions& cache : {rolling(30, 4), rolling(90, 2)}) {
    SequenceState state = text.fresh(cache);
    text.decode(state, {100, 16, 3});
    const std::string saved = state.save();
    SequenceState loaded =
        SequenceState::load(std::as_bytes(std::span(saved)), text.layout(cache), "test");
    EXPECT_EQ(text.decode(loaded, {6, 20}), text.decode(state, {6, 20}));
  }
}

// Pages of 16 rows by arXiv 2406.10774, section 3.3: the row's own, and those whose bounds allow
// the largest scores, added up over the query heads of a group.
Doubles quest(const Text& text, int64_t first, int64_t tokens, int64_t pages) {
  const AttentionOptions& options = text.options;
  const int64_t dim = options.head_dim, group = options.heads / options.kv_heads;
  Doubles out;
  for (int64_t t = first; t < tokens; ++t) {
    std::vector<std::vector<int64_t>> seen(static_cast<size_t>(options.kv_heads));
    for (int64_t kv = 0; kv < options.kv_heads; ++kv) {
      const int64_t own = t / kQuestPage;
      std::vector<std::pair<double, int64_t>> bounds;
      for (int64_t page = 0; page < own; ++page) {
        double bound = 0;
        for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
          for (int64_t c = 0; c < dim; ++c) {
            double low = 1e9, high = -1e9;
            for (int64_t j = page * kQuestPage; j < (page + 1) * kQuestPage; ++j) {
              low = std::min(low, double{text.k.row(j)[kv * dim + c]});
              high = std::max(high, double{text.k.row(j)[kv * dim + c]});
            }
            const double x = text.q.row(t)[head * dim + c];
            bound += std::max(x * low, x * high);
          }
        }
        bounds.emplace_back(-bound, page);
      }
      std::sort(bounds.begin(), bounds.end());
      std::vector<int64_t> chosen = {own};
      for (size_t i = 0; i < bounds.size() && std::ssize(chosen) < pages; ++i) {
        chosen.push_back(bounds[i].second);
      }
      for (int64_t j = 0; j <= t; ++j) {
        if (std::find(chosen.begin(), chosen.end(), j / kQuestPage) != chosen.end()) {
          seen[static_cast<size_t>(kv)].push_back(j);
        }
      }
    }
    for (int64_t head = 0; head < options.heads; ++head) {
      const std::vector<int64_t>& own = seen[static_cast<size_t>(head / group)];
      attend(text, t, head, own, own, out);
    }
  }
  return out;
}

TEST_P(CacheOptionsTest, PagesAreThoseThatQuestChooses) {
  constexpr int64_t kPrompt = 150, kTokens = 270;
  CacheOptions cache;
  cache.quest_pages = 3;
  for (const AttentionOptions& options : shapes()) {
    const Text text(options, kTokens);
    const Doubles want = quest(text, kPrompt, kTokens, cache.quest_pages);
    std::vector<float> ones;
    for (const int64_t step : {1, 16, 7}) {
      SequenceState state = text.fresh(cache);
      text.run(state, kPrompt);
      const std::vector<float> got = text.decode(state, equal_steps(kTokens - kPrompt, step));
      expect_close(got, want, fmt::format("steps of {}", step));
      if (step == 1) ones = got;
      EXPECT_EQ(got, ones) << "steps of " << step;
    }
    // A prompt looks at everything, and so does a cache with pages for all.
    SequenceState plain = text.fresh({}), some = text.fresh(cache);
    const Tensor a = text.run(plain, kPrompt), b = text.run(some, kPrompt);
    EXPECT_TRUE(std::ranges::equal(a.values(), b.values()));
    cache.quest_pages = 100;
    SequenceState all = text.fresh(cache);
    text.run(all, kPrompt);
    EXPECT_EQ(text.decode(all, equal_steps(100, 5)), text.decode(plain, equal_steps(100, 5)));
    cache.quest_pages = 3;
  }
}

TEST_P(CacheOptionsTest, TreesChoosePagesAsChainsDo) {
  CacheOptions cache;
  cache.quest_pages = 2;
  for (const AttentionOptions& options : shapes()) {
    const Text text(options, 260);
    check_tree(text, cache, 93, branches(12));
    check_tree(text, cache, 94, branches(60));
  }
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, CacheOptionsTest,
                         testing::ValuesIn(cpu_instruction_sets()), [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(CacheOptions, AreChecked) {
  const auto layout = std::make_shared<StateLayout>();
  CacheOptions both = rolling(16, 4);
  both.quest_pages = 2;
  EXPECT_THROW(with_cache(layout, both), Error);
  EXPECT_THROW(with_cache(layout, rolling(-1, 4)), Error);
  EXPECT_THROW(with_cache(layout, rolling(16, -4)), Error);
  EXPECT_THROW(with_cache(layout, rolling(INT64_MAX, 4)), Error);
  EXPECT_EQ(with_cache(layout, {}), layout);
  EXPECT_NE(with_cache(layout, rolling(16, 4))->fingerprint,
            with_cache(layout, rolling(16, 3))->fingerprint);
}

}  // namespace
}  // namespace pronghorn
