// The engine: its queue, its ends, and what it counts.
#include "serve/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <thread>

#include "serve/clients.h"
#include "support/diffusion_models.h"
#include "support/errors.h"

namespace pronghorn {
namespace {

using namespace testing_support;
using testing::HasSubstr;

class EngineTest : public testing::Test {
 protected:
  Engine make(const EngineOptions& options = {}) const { return {model_, tokenizer_, options}; }

  std::shared_ptr<const Model> model_ = tiny_model("hybrid");
  std::shared_ptr<const Tokenizer> tokenizer_ = syllables();
};

TEST_F(EngineTest, AnIdleOneHasNothingToDo) {
  Engine engine = make();
  EXPECT_FALSE(engine.step());
  EXPECT_FALSE(engine.wait(0.01));
  const ClientPointer one = client({1, 2, 3}, 4);
  submit(engine, one);
  EXPECT_TRUE(engine.wait(10));
  EXPECT_EQ(engine.counters().waiting, 1);
  EXPECT_EQ(engine.counters().waiting_tokens, 3);
  finish(engine);
  EXPECT_EQ(one->summary.end, TextSummary::End::length);
  EXPECT_EQ(one->summary.tokens, 4);
  EXPECT_EQ(one->tokens.size(), 4u);
  EXPECT_FALSE(engine.wait(0.01));
}

TEST_F(EngineTest, RefusesWhatItCannotServe) {
  EngineOptions options;
  options.context = 50;
  Engine engine = make(options);
  EXPECT_EQ(engine.context(), 50);
  const auto refusal = [&](const auto& change) {
    const ClientPointer bad = client({1, 2, 3}, 4);
    change(bad->request);
    return error_of([&] { submit(engine, bad); });
  };
  EXPECT_THAT(refusal([](TextRequest& r) { r.prompt.clear(); }), HasSubstr("empty"));
  EXPECT_THAT(refusal([](TextRequest& r) { r.prompt.assign(50, 1); }),
              HasSubstr("its 50 tokens leave no room in a context of 50"));
  EXPECT_THAT(refusal([](TextRequest& r) { r.prompt[1] = 61; }), HasSubstr("token 61"));
  EXPECT_THAT(refusal([](TextRequest& r) { r.prompt[1] = -1; }), HasSubstr("token -1"));
  EXPECT_THAT(refusal([](TextRequest& r) { r.options.sampling.top_p = 0; }), HasSubstr("top_p"));
  EXPECT_THAT(refusal([](TextRequest& r) { r.options.max_tokens = -1; }), HasSubstr("max_tokens"));
  EXPECT_THAT(refusal([](TextRequest& r) { r.options.stop = {""}; }), HasSubstr("stop"));
  EXPECT_THAT(refusal([](TextRequest& r) { r.likeliest = 5000; }), HasSubstr("likeliest"));
  EXPECT_THAT(refusal([](TextRequest& r) { r.message_ends = {2, 1}; }), HasSubstr("message_ends"));
  EXPECT_THAT(refusal([](TextRequest& r) { r.message_ends = {4}; }), HasSubstr("message_ends"));
  EXPECT_THAT(refusal([](TextRequest& r) { r.answers = {{1, 9}}; }), HasSubstr("answers"));
  EXPECT_THAT(refusal([](TextRequest& r) {
                r.options.sampling.logit_bias = {{1, NAN}};
              }),
              HasSubstr("logit_bias"));
  EXPECT_FALSE(engine.step());
  // A text ends where the context does.
  const ClientPointer last = run(engine, client(std::vector<int32_t>(45, 7), 100));
  EXPECT_EQ(last->summary.tokens, 5);
  EXPECT_EQ(last->summary.end, TextSummary::End::length);
  options.sequences = 0;
  EXPECT_THROW(make(options), UsageError);
}

TEST_F(EngineTest, AQueueHasRoomForSoManyRequestsAndTokens) {
  EngineOptions options;
  options.sequences = 1;
  options.queue_requests = 3;
  options.queue_tokens = 100;
  Engine engine = make(options);
  // One that is too long for the queue waits if nobody else does.
  submit(engine, client(random_tokens(120, 61, 1), 3));
  try {
    submit(engine, client(random_tokens(5, 61, 1), 3));
    FAIL();
  } catch (const QueueFull& full) {
    EXPECT_EQ(full.requests, 1);
    EXPECT_EQ(full.tokens, 120);
    EXPECT_GT(full.retry_after_seconds, 0);
    EXPECT_THAT(full.what(), HasSubstr("1 requests with 120 tokens wait"));
  }
  engine.step();  // it runs
  for (int i = 0; i < 3; ++i) submit(engine, client(random_tokens(5, 61, 1), 3));
  EXPECT_THROW(submit(engine, client(random_tokens(5, 61, 1), 3)), QueueFull);
  EXPECT_EQ(engine.counters().waiting, 3);
  finish(engine);
  EXPECT_EQ(engine.counters().refused, 2);
  EXPECT_EQ(engine.counters().length, 4);
  EXPECT_EQ(run(engine, client(random_tokens(5, 61, 1), 3))->ends, 1);
}

TEST_F(EngineTest, CancelsInEveryPhase) {
  EngineOptions options;
  options.sequences = 2;
  options.prompt_rows = 16;
  options.beside = 0;  // the long prompt is left in the middle of its second piece
  Engine engine = make(options);
  const auto prompt = random_tokens(1000, 61, 2);
  const ClientPointer reading = client(prompt, 10), writing = client({1, 2, 3}, 1000),
                      waiting = client({4, 5}, 10);
  submit(engine, reading);
  submit(engine, writing);
  submit(engine, waiting);
  for (int i = 0; i < 2; ++i) engine.step();
  EXPECT_EQ(engine.counters().running, 2);
  EXPECT_EQ(engine.counters().reading, 1);
  EXPECT_EQ(engine.counters().waiting, 1);
  EXPECT_GE(writing->tokens.size(), 2u);
  for (const ClientPointer& one : {waiting, reading, writing}) {
    engine.cancel(one->id);
    EXPECT_EQ(one->ends, 0);
    engine.step();
    EXPECT_EQ(one->ends, 1);
    EXPECT_EQ(one->summary.end, TextSummary::End::cancelled);
    engine.cancel(one->id);  // it has ended
  }
  EXPECT_FALSE(engine.step());
  EXPECT_TRUE(reading->tokens.empty());
  EXPECT_EQ(reading->summary.tokens, 0);
  EXPECT_EQ(static_cast<int64_t>(writing->tokens.size()), writing->summary.tokens);
  EXPECT_EQ(engine.counters().cancelled, 3);
  EXPECT_EQ(engine.counters().running, 0);
  EXPECT_EQ(engine.counters().state_bytes, 0);
  engine.cancel(12345);
  // What was read of the long prompt is kept, without the piece that was not read whole.
  const ClientPointer resumed = run(engine, client(prompt, 3));
  EXPECT_EQ(resumed->summary.cached_tokens, 256);
  Engine fresh = make(options);
  EXPECT_EQ(resumed->heard(), run(fresh, again(resumed))->heard());
}

// The parts of a long piece's forward.
int64_t parts_of(const Model& model) {
  int64_t parts = 0;
  for (const auto& block : model.blocks()) parts += block->has_two_parts() ? 2 : 1;
  return parts;
}

// Whoever is written hears a token in every step, and a step reads a part of a piece; where nobody
// is written it reads a piece. The text is the same.
TEST_F(EngineTest, LongPromptsAreReadInPartsBesideTexts) {
  EngineOptions options;
  options.beside = 0;  // as little as can be
  options.cache_bytes = 0;
  Engine busy = make(options);
  const ClientPointer writing = client({1, 2, 3}, 1000),
                      reading = client(random_tokens(512, 61, 2), 2);
  submit(busy, writing);
  busy.step();
  ASSERT_EQ(writing->tokens.size(), 1u);
  submit(busy, reading);
  const int64_t steps_of_piece = parts_of(*model_) + 1;  // the last one is for the end
  for (int64_t step = 1; step <= 2 * steps_of_piece; ++step) {
    EXPECT_TRUE(reading->tokens.empty()) << step;
    const int64_t rows = busy.counters().rows;
    busy.step();
    EXPECT_EQ(std::ssize(writing->tokens), 1 + step);
    EXPECT_EQ(busy.counters().rows - rows, step % steps_of_piece == 0 ? 257 : 1) << step;
  }
  EXPECT_EQ(reading->tokens.size(), 1u);
  busy.cancel(writing->id);
  finish(busy);
  Engine idle = make(options);
  const ClientPointer alone = again(reading);
  submit(idle, alone);
  idle.step();
  EXPECT_TRUE(alone->tokens.empty());
  EXPECT_EQ(idle.counters().rows, 256);
  idle.step();
  EXPECT_EQ(alone->tokens.size(), 1u);
  finish(idle);
  EXPECT_EQ(alone->heard(), reading->heard());
  // A piece that was begun beside a text is read to its end at once when that is gone.
  const ClientPointer gone = client({1, 2, 3}, 1000), left = again(reading);
  submit(busy, gone);
  busy.step();
  submit(busy, left);
  busy.step();
  busy.cancel(gone->id);
  busy.step();
  busy.step();
  EXPECT_EQ(left->tokens.size(), 1u);
  finish(busy);
  EXPECT_EQ(left->heard(), reading->heard());
}

// The same for answers of earlier turns, which are read in exact steps: 16 rows beside a text, and
// a row more for each that is written.
TEST_F(EngineTest, FewExactRowsAreReadBesideTexts) {
  EngineOptions options;
  options.cache_bytes = 0;
  for (const double beside : {0.0, 40.0}) {
    options.beside = beside;
    Engine engine = make(options);
    const ClientPointer writing = client({1, 2, 3}, 1000);
    submit(engine, writing);
    engine.step();
    std::vector<ClientPointer> others;
    for (uint64_t i = 0; i < 4; ++i) {
      others.push_back(client(random_tokens(60, 61, i), 3, i));
      others.back()->request.answers = {{4, 60}};
      submit(engine, others.back());
    }
    int64_t most = 0, steps = 0;
    const auto waits = [](const ClientPointer& one) { return one->ends == 0; };
    for (; std::ranges::any_of(others, waits) && steps < 1000; ++steps) {
      const EngineCounters before = engine.counters();
      engine.step();
      const int64_t written = before.running - before.reading;
      const int64_t rows = engine.counters().rows - before.rows - written;
      EXPECT_LE(rows, std::max(kExactStep, static_cast<int64_t>(beside) * written));
      most = std::max(most, rows);
      EXPECT_EQ(std::ssize(writing->tokens), 2 + steps);
    }
    EXPECT_EQ(most > kExactStep, beside > 1);
    Engine idle = make(options);
    for (const ClientPointer& one : others) {
      EXPECT_EQ(one->heard(), run(idle, again(one))->heard());
    }
  }
}

// Prompts of one kind do not keep those of the other waiting.
TEST_F(EngineTest, BothKindsOfPiecesGoOnBesideTexts) {
  EngineOptions options;
  options.beside = 0;
  options.cache_bytes = 0;
  Engine engine = make(options);
  const ClientPointer writing = client({1, 2, 3}, 1000),
                      answer = client(random_tokens(400, 61, 4), 2),
                      plain = client(random_tokens(100, 61, 5), 2);
  answer->request.answers = {{0, 400}};
  submit(engine, writing);
  engine.step();
  submit(engine, answer);
  submit(engine, plain);
  for (int64_t step = 0; step < 2 * (parts_of(*model_) + 1); ++step) engine.step();
  EXPECT_FALSE(plain->tokens.empty());
  EXPECT_TRUE(answer->tokens.empty());
  for (int step = 0; step < 25; ++step) engine.step();
  EXPECT_FALSE(answer->tokens.empty());
}

TEST_F(EngineTest, RefusesAShareThatIsNone) {
  EngineOptions options;
  options.beside = -1;
  EXPECT_THAT(error_of([&] { make(options); }), HasSubstr("beside"));
  options.beside = NAN;
  EXPECT_THROW(make(options), UsageError);
}

TEST_F(EngineTest, CancelsWhatIsLeftWhenItEnds) {
  const ClientPointer running = client({1, 2}, 100), waiting = client({3}, 100);
  {
    EngineOptions options;
    options.sequences = 1;
    Engine engine = make(options);
    submit(engine, running);
    engine.step();
    submit(engine, waiting);
  }
  EXPECT_EQ(running->ends, 1);
  EXPECT_EQ(running->summary.end, TextSummary::End::cancelled);
  EXPECT_EQ(waiting->ends, 1);
  EXPECT_EQ(waiting->summary.end, TextSummary::End::cancelled);
}

TEST_F(EngineTest, ShortPromptsOvertakeLongOnes) {
  EngineOptions options;
  options.sequences = 3;
  Engine engine = make(options);
  const ClientPointer first = client(random_tokens(3000, 61, 1), 2),
                      second = client(random_tokens(2500, 61, 2), 2),
                      small = client(random_tokens(100, 61, 3), 2);
  submit(engine, first);
  submit(engine, second);
  engine.step();
  submit(engine, small);
  engine.step();
  engine.step();
  EXPECT_FALSE(small->tokens.empty());
  while (second->ends == 0) engine.step();
  EXPECT_TRUE(first->tokens.empty());
  finish(engine);
  EXPECT_EQ(first->ends, 1);
}

TEST_F(EngineTest, TextsEndAsTheyAreToldTo) {
  Engine engine = make();
  ClientPointer plain = run(engine, client({5, 6, 7}, 30));
  const std::vector<int32_t> ids = plain->ids();
  ClientPointer stopped = client({5, 6, 7}, 30);
  const std::string stop = plain->text.substr(20, 5);
  stopped->request.options.stop = {"never", stop};
  run(engine, stopped);
  EXPECT_EQ(stopped->text, plain->text.substr(0, plain->text.find(stop)));
  EXPECT_EQ(stopped->summary.end, TextSummary::End::stop_string);
  EXPECT_EQ(stopped->summary.stop, stop);
  // An end token, and one that may not come so early.
  const int32_t end = ids[10];
  const auto at = std::ranges::find(ids, end) - ids.begin();
  ClientPointer ended = client({5, 6, 7}, 30);
  ended->request.options.end_tokens = {end};
  run(engine, ended);
  EXPECT_EQ(ended->summary.end, TextSummary::End::end_token);
  EXPECT_EQ(ended->summary.tokens, at + 1);
  ended = again(ended);
  ended->request.options.min_tokens = 20;
  run(engine, ended);
  EXPECT_GE(ended->summary.tokens, 20);
  const std::vector<int32_t> longer = ended->ids();
  EXPECT_EQ(std::find(longer.begin(), longer.begin() + 20, end), longer.begin() + 20);
  ended = again(ended);
  ended->request.options.stop_at_eos = false;
  EXPECT_EQ(run(engine, ended)->ids(), ids);
}

TEST_F(EngineTest, OneThatFailsHarmsNobody) {
  Engine engine = make();
  const ClientPointer good = client({5, 6, 7}, 20);
  submit(engine, good);
  TextRequest bad = client({5, 6}, 20)->request;
  TextSummary summary;
  bad.on_event = [](const TextEvent&) { throw std::runtime_error("a client that throws"); };
  bad.on_end = [&](const TextSummary& end) { summary = end; };
  engine.submit(bad);
  finish(engine);
  EXPECT_EQ(summary.end, TextSummary::End::failed);
  EXPECT_EQ(summary.error, "a client that throws");
  EXPECT_EQ(good->summary.end, TextSummary::End::length);
  EXPECT_EQ(engine.counters().failed, 1);
}

TEST_F(EngineTest, CallbacksMaySubmit) {
  Engine engine = make();
  const ClientPointer second = client({8, 9}, 3);
  TextRequest first = client({5, 6}, 3)->request;
  first.on_end = [&](const TextSummary&) { submit(engine, second); };
  engine.submit(first);
  finish(engine);
  EXPECT_EQ(second->ends, 1);
}

TEST_F(EngineTest, RequestsComeFromManyThreads) {
  constexpr int kThreads = 4, kEach = 12;
  EngineOptions options;
  options.sequences = 5;
  Engine engine = make(options);
  std::vector<std::vector<ClientPointer>> clients(kThreads);
  std::atomic<int> left = kThreads;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < kEach; ++i) {
          const auto seed = static_cast<uint64_t>(kEach * t + i);
          const ClientPointer one =
              client(random_tokens(static_cast<int64_t>(1 + 9 * seed % 70), 61, seed), 9, seed);
          clients[static_cast<size_t>(t)].push_back(one);
          submit(engine, one);
          if (i % 5 == 4) engine.cancel(one->id);
          engine.counters();
        }
        --left;
      });
    }
    while (left > 0 || engine.counters().waiting > 0) {
      engine.wait(0.01);
      engine.step();
    }
  }
  finish(engine);
  for (const auto& some : clients) {
    for (const ClientPointer& one : some) EXPECT_EQ(one->ends, 1);
  }
  const EngineCounters counters = engine.counters();
  EXPECT_EQ(counters.length + counters.cancelled, kThreads * kEach);
}

TEST_F(EngineTest, DiffusionModelsAreRefused) {
  const auto model = std::make_shared<const Model>(diffusion_config("2a"), 1);
  EXPECT_THAT(error_of([&] { Engine(model, tokenizer_, EngineOptions()); }),
              HasSubstr("diffusion"));
}

// A draft model whose positions end earlier helps as far as it can.
TEST(EngineDrafts, BeyondTheDraftersPositionsThereAreNone) {
  const auto model = tiny_model("transformer");
  auto small = std::make_shared<Model>(tiny_model("learned_positions")->config(), 3);
  const auto tokenizer = syllables();
  Speculation speculation(make_model_drafter(small, *tokenizer, *model, *tokenizer, "small"),
                          {{3, 1}, false});
  EXPECT_EQ(speculation.drafter().longest_text(), 512);
  GenerateOptions options;
  options.max_tokens = 60;
  const std::vector<int32_t> prompt = random_tokens(480, 61, 1);
  Session plain(*model), guessed(*model);
  const Generated expected = generate(*model, *tokenizer, plain, prompt, options);
  const Generated result = generate(*model, *tokenizer, guessed, prompt, options, {}, &speculation);
  EXPECT_EQ(result.text, expected.text);
  EXPECT_GT(result.drafted, 0);
  EXPECT_LT(result.drafted, 120);
}

TEST_F(EngineTest, BiasAndPenaltiesChangeWhatIsWritten) {
  Engine engine = make();
  const ClientPointer plain = client({5, 6, 7}, 40);
  plain->request.options.sampling.temperature = 0;
  run(engine, plain);
  const int32_t common = plain->ids()[20];
  ClientPointer other = again(plain);
  other->request.options.sampling.logit_bias = {{common, -INFINITY}};
  run(engine, other);
  EXPECT_THAT(other->ids(), testing::Not(testing::Contains(common)));
  // Raw scores: the bias does not change them.
  EXPECT_FLOAT_EQ(other->tokens[0].likeliest[0].log_probability,
                  plain->tokens[0].likeliest[0].log_probability);
  other = again(plain);
  other->request.options.sampling.presence_penalty = 1000;
  run(engine, other);
  std::vector<int32_t> ids = other->ids();
  std::sort(ids.begin(), ids.end());
  EXPECT_EQ(std::unique(ids.begin(), ids.end()), ids.end());  // none twice
}

}  // namespace
}  // namespace pronghorn
