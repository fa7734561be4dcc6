// Writing with diffusion models: against a naive decoder, what texts depend on, where they end, and
// the caches.
#include "decode/diffusion.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "decode/generator.h"
#include "decode/syllable_tokenizer.h"
#include "support/diffusion_models.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/machine.h"
#include "support/model_runs.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::diffusion_config;
using testing_support::error_of;
using testing_support::kMaskToken;
using testing_support::random_tokens;
using testing_support::SyllableTokenizer;
using testing_support::Threads;

const std::vector<int32_t> kPrompt = {3, 14, 15, 9, 2, 6, 5};

// How a test decodes.
struct Settings {
  DiffusionOptions options;
  double temperature = 0;
  uint64_t seed = 5;
};

GenerateOptions options_of(const Settings& settings, int64_t tokens) {
  GenerateOptions options;
  options.max_tokens = tokens;
  options.diffusion = settings.options;
  options.sampling.temperature = settings.temperature;
  options.sampling.seed = settings.seed;
  return options;
}

Generated written(const Model& model, const Settings& settings, int64_t tokens,
                  std::span<const int32_t> prompt = kPrompt) {
  Session session(model);
  return generate(model, SyllableTokenizer(), session, prompt, options_of(settings, tokens));
}

// The scores of one place of a canvas in float64, from a forward of it all.
std::vector<double> scores_at(const Model& model, const std::vector<int32_t>& canvas,
                              int64_t place) {
  Batch batch;
  add_fresh_segment(batch, canvas);
  const std::vector<float> logits = testing_support::run(model, batch, Precision::f32);
  const int64_t row = model.config().diffusion->shift ? std::max<int64_t>(0, place - 1) : place;
  std::vector<double> scores(logits.begin() + row * 61, logits.begin() + (row + 1) * 61);
  scores[kMaskToken] = -INFINITY;
  return scores;
}

// LLaDA's algorithm, read off the paper: parts from left to right; in each step the likeliest
// tokens are found for all masked places of the part, and those that the model is surest of stay.
std::vector<int32_t> naive_text(const Model& model, const DiffusionOptions& options, int64_t count,
                                int64_t first_part) {
  std::vector<int32_t> canvas = kPrompt;
  canvas.resize(kPrompt.size() + static_cast<size_t>(count), kMaskToken);
  auto begin = static_cast<int64_t>(kPrompt.size());
  int64_t part = first_part;
  for (; begin < std::ssize(canvas); begin += std::exchange(part, options.part)) {
    const int64_t end = std::min(begin + part, std::ssize(canvas));
    const int64_t total = end - begin;
    const int64_t steps = options.steps == 0 ? total : std::min(options.steps, total);
    for (int64_t step = 0; step < total; ++step) {
      // What a model with blocks sees ends with this one.
      std::vector<int32_t> seen = canvas;
      if (model.config().diffusion->block > 0) seen.resize(static_cast<size_t>(end));
      struct Found {
        double rank, probability;
        int64_t place;
        int32_t token;
      };
      std::vector<Found> found;
      for (int64_t place = begin; place < end; ++place) {
        if (canvas[static_cast<size_t>(place)] != kMaskToken) continue;
        const std::vector<double> scores = scores_at(model, seen, place);
        std::vector<double> p(scores.size());
        double sum = 0, entropy = 0;
        for (const double score : scores) sum += std::exp(score);
        for (size_t i = 0; i < p.size(); ++i) {
          p[i] = std::exp(scores[i]) / sum;
          if (p[i] > 0) entropy -= p[i] * std::log(p[i]);
        }
        const auto token = static_cast<int32_t>(std::ranges::max_element(p) - p.begin());
        const double probability = p[static_cast<size_t>(token)];
        std::ranges::sort(p, std::greater<>());
        double rank = probability;
        if (options.order == UnmaskOrder::entropy) rank = -entropy;
        if (options.order == UnmaskOrder::margin) rank = p[0] - p[1];
        found.push_back({rank, probability, place, token});
      }
      if (found.empty()) break;
      std::ranges::stable_sort(found, std::greater<>(), &Found::rank);
      const int64_t least =
          options.threshold > 0 ? 1 : total / steps + (step < total % steps ? 1 : 0);
      for (size_t i = 0; i < found.size(); ++i) {
        const bool sure = options.threshold > 0 && found[i].probability >= options.threshold;
        if (static_cast<int64_t>(i) < least || sure) {
          canvas[static_cast<size_t>(found[i].place)] = found[i].token;
        }
      }
    }
  }
  return {canvas.begin() + std::ssize(kPrompt), canvas.end()};
}

TEST(Diffusion, WritesWhatANaiveDecoderWrites) {
  const std::vector<DiffusionOptions> all = {
      {.part = 8},
      {.steps = 3, .part = 8},
      {.steps = 5, .part = 30, .order = UnmaskOrder::entropy},
      {.steps = 100, .part = 7, .order = UnmaskOrder::margin},
      {.part = 10, .threshold = 0.3},
      {.steps = 1, .part = 4}};
  for (const char* pattern : {"a", "am"}) {
    for (const char* settings : {"", R"("shift": true)"}) {
      const Model model(diffusion_config(pattern, settings), 3);
      for (size_t i = 0; i < all.size(); ++i) {
        SCOPED_TRACE(fmt::format("{} {} options {}", pattern, settings, i));
        const Generated result = written(model, {all[i]}, 22);
        EXPECT_EQ(result.ids, naive_text(model, all[i], 22, all[i].part));
      }
    }
  }
}

// The prompt ends inside a block, the rest of which is written first.
TEST(Diffusion, WritesBlocksWhatANaiveDecoderWrites) {
  for (const char* pattern : {"al", "mr", "as"}) {
    SCOPED_TRACE(pattern);
    const Model model(diffusion_config(pattern, R"("block": 4)"), 3);
    for (const DiffusionOptions& options :
         {DiffusionOptions{.part = 4}, {.steps = 2, .part = 4}, {.part = 4, .threshold = 0.2}}) {
      const Generated result = written(model, {options}, 17);
      EXPECT_EQ(result.ids, naive_text(model, options, 17, 1));
      EXPECT_EQ(result.end, Generated::End::length);
    }
  }
}

// Blocks of more tokens than a recurrence can take back.
TEST(Diffusion, WritesLongBlocksWithRecurrences) {
  for (const char* pattern : {"m", "ks"}) {
    SCOPED_TRACE(pattern);
    const Model model(diffusion_config(pattern, R"("block": 24)"), 3);
    const DiffusionOptions options{.steps = 3, .part = 24};
    EXPECT_EQ(written(model, {options}, 41).ids, naive_text(model, options, 41, 17));
  }
}

TEST(Diffusion, LeavesNoMaskInAnyOrder) {
  const Model whole(diffusion_config("am"), 3);
  const Model blocks(diffusion_config("a", R"("block": 8)"), 3);
  for (const UnmaskOrder order :
       {UnmaskOrder::confidence, UnmaskOrder::entropy, UnmaskOrder::margin, UnmaskOrder::random}) {
    for (const Model* model : {&whole, &blocks}) {
      for (const int64_t steps : {0, 1, 3}) {
        const Generated result = written(*model, {{.steps = steps, .order = order}, 1.0}, 30);
        EXPECT_EQ(result.ids.size(), 30u);
        EXPECT_EQ(std::ranges::count(result.ids, kMaskToken), 0);
      }
    }
  }
}

TEST(Diffusion, TextDependsOnTheSeedAlone) {
  for (const char* settings : {"", R"("block": 4)"}) {
    const Model model(diffusion_config("al", settings), 3);
    Settings sampled{{.steps = 2}, 0.8};
    std::vector<int32_t> first;
    for (const int threads : {1, 4}) {
      const Threads scope(threads);
      const std::vector<int32_t> ids = written(model, sampled, 24).ids;
      if (first.empty()) first = ids;
      EXPECT_EQ(ids, first);
    }
    sampled.seed = 6;
    EXPECT_NE(written(model, sampled, 24).ids, first);
    sampled.options.order = UnmaskOrder::random;
    EXPECT_EQ(written(model, sampled, 24).ids, written(model, sampled, 24).ids);
  }
}

TEST(Diffusion, StepsAreThoseAskedFor) {
  const Model model(diffusion_config("a"), 3);
  EXPECT_EQ(written(model, {{.part = 8}}, 24).steps, 24);
  EXPECT_EQ(written(model, {{.steps = 2, .part = 8}}, 24).steps, 6);
  EXPECT_EQ(written(model, {{.part = 8, .threshold = 1e-9}}, 24).steps, 3);
  EXPECT_EQ(written(model, {{.part = 8, .threshold = 1}}, 24).steps, 24);
}

// A longer text of a model with blocks begins like a shorter one, and a session that goes on writes
// what one text would have been.
TEST(Diffusion, BlocksGoOnWhereTheyEnded) {
  const Model model(diffusion_config("a", R"("block": 4)"), 3);
  const std::vector<int32_t> whole = written(model, {}, 25).ids;
  const std::vector<int32_t> begin = written(model, {}, 9).ids;  // to the end of a block
  EXPECT_TRUE(std::equal(begin.begin(), begin.end(), whole.begin()));
  Session session(model);
  const SyllableTokenizer tokenizer;
  generate(model, tokenizer, session, kPrompt, options_of({}, 9));
  EXPECT_EQ(session.length(), 16);
  const testing_support::Folder folder;
  session.save(folder / "session");
  for (Session again : {session, Session::load(folder / "session", model)}) {
    const Generated rest = generate(model, tokenizer, again, {}, options_of({}, 16));
    EXPECT_EQ(rest.ids, std::vector<int32_t>(whole.begin() + 9, whole.end()));
  }
  // Back into the middle of a block that was read.
  std::vector<int32_t> text = kPrompt;
  text.insert(text.end(), begin.begin(), begin.end());
  Session back = session;
  generate(model, tokenizer, back, {}, options_of({}, 4));
  ASSERT_TRUE(back.go_back(std::span(text).first(10)));
  const Generated other = generate(model, tokenizer, back, {}, options_of({}, 6));
  Session fresh(model);
  EXPECT_EQ(other.ids,
            generate(model, tokenizer, fresh, std::span(text).first(10), options_of({}, 6)).ids);
}

// A recurrence holds few of its rows: what begins a block is read again, or going back is refused.
TEST(Diffusion, GoesBackIntoBlocksOfRecurrences) {
  const SyllableTokenizer tokenizer;
  for (const char* settings : {R"("block": 12)", R"("block": 24)"}) {
    SCOPED_TRACE(settings);
    const Model model(diffusion_config("m", settings), 3);
    const DiffusionOptions options{.steps = 2};
    Session session(model);
    std::vector<int32_t> text = kPrompt;
    const Generated begin = generate(model, tokenizer, session, kPrompt, options_of({options}, 41));
    text.insert(text.end(), begin.ids.begin(), begin.ids.end());
    int64_t went_back = 0;
    for (size_t length = 1; length < text.size(); ++length) {
      Session back = session;
      const auto kept = std::span(text).first(length);
      if (!back.go_back(kept)) continue;
      ++went_back;
      Session fresh(model);
      EXPECT_EQ(generate(model, tokenizer, back, {}, options_of({options}, 6)).ids,
                generate(model, tokenizer, fresh, kept, options_of({options}, 6)).ids)
          << length;
    }
    EXPECT_GT(went_back, 0);
  }
}

TEST(Diffusion, TextsEndWhereTheyMust) {
  const Model model(diffusion_config("a"), 3);
  const std::vector<int32_t> ids = written(model, {{.part = 4}}, 24).ids;
  GenerateOptions options = options_of({{.part = 4}}, 24);
  options.end_tokens = {ids[9]};
  Session session(model);
  const SyllableTokenizer tokenizer;
  std::string shown;
  const Generated ended = generate(model, tokenizer, session, kPrompt, options,
                                   [&](std::string_view piece) { shown += piece; });
  const auto place = std::ranges::find(ids, ids[9]) - ids.begin();
  EXPECT_EQ(ended.end, Generated::End::end_token);
  EXPECT_EQ(ended.ids, std::vector<int32_t>(ids.begin(), ids.begin() + place + 1));
  EXPECT_EQ(ended.text, shown);
  EXPECT_EQ(session.length(), std::ssize(kPrompt) + place + 1);
  options.end_tokens = {};
  options.stop = {tokenizer.token_bytes(ids[6], false)};
  Session other(model);
  const Generated stopped = generate(model, tokenizer, other, kPrompt, options);
  EXPECT_EQ(stopped.end, Generated::End::stop_string);
  EXPECT_EQ(stopped.text.find(options.stop.front()), std::string::npos);
  int64_t asked = 0;
  Session interrupted(model);
  EXPECT_EQ(generate(model, tokenizer, interrupted, kPrompt, options_of({{.part = 4}}, 24), {},
                     nullptr, [&] { return ++asked > 7; })
                .end,
            Generated::End::interrupted);
}

// With one step for a part only the renewing pass is made, which sees everything; with more steps
// the caches hold what was computed when more was masked.
TEST(Diffusion, CachesAreExactWhereTheyAreRenewed) {
  for (const char* settings : {"", R"("shift": true)"}) {
    const Model model(diffusion_config("al", settings), 3);
    const bool shift = model.config().diffusion->shift;
    for (const CanvasCache cache : {CanvasCache::prefix, CanvasCache::dual}) {
      const std::vector<int32_t> plain = written(model, {{.steps = 1, .part = 5}}, 20).ids;
      const Generated cached = written(model, {{.steps = 1, .part = 5, .cache = cache}}, 20);
      // With shifted scores the renewing pass gives the first token of a part alone.
      if (!shift) {
        EXPECT_EQ(cached.ids, plain);
      }
      EXPECT_EQ(cached.ids.front(), plain.front());
      EXPECT_EQ(cached.steps, shift ? 8 : 4);
      const Generated more = written(model, {{.part = 5, .cache = cache}}, 20);
      EXPECT_EQ(more.steps, 20);
      EXPECT_EQ(std::ranges::count(more.ids, kMaskToken), 0);
    }
  }
}

// The scores of the last places of a text, when what is before them was computed with the same
// tokens: nothing is stale, so the caches are exact within rounding.
TEST(Diffusion, CachesGiveTheScoresOfTheWholeText) {
  const Model model(diffusion_config("ala"), 3);
  std::vector<int32_t> canvas = random_tokens(40, 60, 1);
  const std::vector<int64_t> places = {20, 22, 23};
  for (const int64_t place : places) canvas[static_cast<size_t>(place)] = kMaskToken;
  std::vector<float> expected;
  for (const CanvasCache cache : {CanvasCache::none, CanvasCache::prefix, CanvasCache::dual}) {
    CanvasReader reader(model, {}, nullptr, cache);
    reader.begin(20, 25);
    for (int repeat = 0; repeat < 3; ++repeat) {
      EXPECT_EQ(reader.renews(), cache != CanvasCache::none && repeat == 0);
      const Tensor scores = reader.scores(canvas, places);
      const std::vector<float> got(scores.values().begin(), scores.values().end());
      if (expected.empty()) expected = got;
      EXPECT_LT(testing_support::relative_difference(got, expected), 2e-5);
    }
  }
}

// A penalty that nothing outweighs: no token is written twice. With a step for each token, since
// those of one step do not know of each other.
TEST(Diffusion, PenaltiesKnowAllThatIsWritten) {
  for (const char* settings : {"", R"("block": 8)"}) {
    const Model model(diffusion_config("a", settings), 3);
    GenerateOptions options = options_of({{.part = 8}}, 30);
    options.sampling.frequency_penalty = 1e6;
    Session session(model);
    const Generated result = generate(model, SyllableTokenizer(), session, kPrompt, options);
    const std::set<int32_t> distinct(result.ids.begin(), result.ids.end());
    EXPECT_EQ(distinct.size(), 30u);
  }
}

// Log-probabilities are those of the moment at which a token is written.
TEST(Diffusion, TellsHowProbableTokensWere) {
  const Model model(diffusion_config("a"), 3);
  GenerateOptions options = options_of({{.steps = 1, .part = 8}}, 8);
  options.likeliest = 1;
  Session session(model);
  const Generated result = generate(model, SyllableTokenizer(), session, kPrompt, options);
  ASSERT_EQ(result.written.size(), 8u);
  std::vector<int32_t> canvas = kPrompt;
  canvas.resize(kPrompt.size() + 8, kMaskToken);
  for (size_t i = 0; i < 8; ++i) {
    Batch batch;
    add_fresh_segment(batch, canvas);
    const std::vector<float> logits = testing_support::run(model, batch, Precision::f32);
    const float* row = logits.data() + (kPrompt.size() + i) * 61;
    double sum = 0;
    for (int64_t c = 0; c < 61; ++c) sum += std::exp(double{row[c]});
    EXPECT_NEAR(result.written[i].log_probability, row[result.ids[i]] - std::log(sum), 1e-4);
    ASSERT_EQ(result.written[i].likeliest.size(), 1u);
  }
}

TEST(Diffusion, ShowsTheCanvas) {
  const Model model(diffusion_config("a"), 3);
  Session session(model);
  std::vector<int64_t> masked;
  const GenerateOptions options = options_of({{.steps = 2, .part = 4}}, 8);
  Generation generation{&session, kPrompt, options, {}, {}};
  generation.on_canvas = [&](std::span<const int32_t> canvas) {
    masked.push_back(std::ranges::count(canvas, -1));
  };
  generate(model, SyllableTokenizer(), {&generation, 1});
  EXPECT_EQ(masked, (std::vector<int64_t>{6, 4, 2, 0}));
}

TEST(Diffusion, NeverWritesTheMask) {
  const std::vector<float> scores = {-1e30f, 5, -1e30f};
  SamplingOptions sampling;
  EXPECT_EQ(draw_unmasking(scores, 1, UnmaskOrder::confidence, sampling, {}, 0, 0).token, 0);
  const std::vector<float> alone = {3};
  EXPECT_THAT(
      error_of([&] { draw_unmasking(alone, 0, UnmaskOrder::confidence, sampling, {}, 0, 0); }),
      HasSubstr("no token but the one that masks"));
}

TEST(Diffusion, SaysWhatItCannot) {
  const Model whole(diffusion_config("am"), 3);
  const Model blocks(diffusion_config("a", R"("block": 4)"), 3);
  const Model causal(testing_support::model_config(
                         R"("pattern": "a", "blocks": {"a": {"mixer": {"type": "attention",
                         "heads": 2}}})"),
                     3);
  EXPECT_THAT(error_of([&] { written(whole, {{.cache = CanvasCache::dual}}, 4); }),
              HasSubstr("keep no keys"));
  EXPECT_THAT(error_of([&] { written(blocks, {{.cache = CanvasCache::prefix}}, 4); }),
              HasSubstr("for a model that reads blocks"));
  EXPECT_THAT(error_of([&] { written(blocks, {{.part = 8}}, 4); }), HasSubstr("blocks of 4"));
  EXPECT_THAT(error_of([&] { written(causal, {{.steps = 8}}, 4); }),
              HasSubstr("for diffusion models"));
  EXPECT_THAT(error_of([&] { written(whole, {{.threshold = 2}}, 4); }), HasSubstr("threshold"));
  const Model windowed(diffusion_config("w"), 3);
  EXPECT_THAT(error_of([&] { written(windowed, {{.cache = CanvasCache::prefix}}, 4); }),
              HasSubstr("keep no keys"));
  // What sees both ways by itself, but whole texts alone.
  const Model longformer(diffusion_config("ag"), 3);
  EXPECT_EQ(error_of([&] { written(longformer, {}, 4); }), "no error");
  EXPECT_THAT(error_of([&] { written(longformer, {{.cache = CanvasCache::dual}}, 4); }),
              HasSubstr("keep no keys"));
  EXPECT_THAT(error_of([] { Model(diffusion_config("ag", R"("block": 4)"), 3); }),
              HasSubstr("longformer sees whole texts both ways"));
  EXPECT_THAT(error_of([] {
                Model(testing_support::model_config(
                          R"("pattern": "g", "blocks": {"g": {"mixer": {"type": "longformer",
                          "heads": 2, "both_ways": true}}})"),
                      3);
              }),
              HasSubstr("longformer sees whole texts both ways"));
  const auto cached = [](const Model& model, const CacheOptions& cache) {
    Session session(model, cache);
    generate(model, SyllableTokenizer(), session, kPrompt, options_of({}, 4));
  };
  CacheOptions window, weighed;
  window.window = 16;
  weighed.h2o = 16;
  EXPECT_THAT(error_of([&] { cached(Model(diffusion_config("a"), 3), DType::bf16); }),
              HasSubstr("bf16 in a model that sees texts whole"));
  EXPECT_THAT(error_of([&] { cached(blocks, window); }), HasSubstr("a part of the keys"));
  EXPECT_THAT(error_of([&] { cached(blocks, weighed); }), HasSubstr("a part of the keys"));
  EXPECT_EQ(error_of([&] { cached(blocks, DType::bf16); }), "no error");
  EXPECT_THAT(error_of([&] {
                written(whole, {}, 4, std::vector<int32_t>{1, kMaskToken});
              }),
              HasSubstr("stands for what is masked"));
  Session session(whole);
  session.append(kPrompt);
  EXPECT_THAT(error_of([&] { session.scores(whole, {}); }), HasSubstr("no next token"));
  const SyllableTokenizer tokenizer;
  Speculation speculation(make_drafter("ngram", whole, tokenizer), {});
  EXPECT_THAT(error_of([&] {
                Session fresh(whole);
                generate(whole, tokenizer, fresh, kPrompt, options_of({}, 4), {}, &speculation);
              }),
              HasSubstr("several tokens a step by itself"));
}

}  // namespace
}  // namespace pronghorn
