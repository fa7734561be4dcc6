// What a request is answered depends on nothing but the request: not on the load, on cuts of
// prompts, on what the cache has, or on drafters.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "base/random.h"
#include "serve/clients.h"
#include "support/machine.h"

namespace pronghorn {
namespace {

using namespace testing_support;

class ServedTexts : public testing::TestWithParam<const char*> {
 protected:
  ServedTexts() : model_(tiny_model(GetParam())), tokenizer_(syllables()) {}

  EngineOptions options(int64_t sequences, int64_t cache_bytes = 0) const {
    EngineOptions options;
    options.sequences = sequences;
    options.cache_bytes = cache_bytes;
    options.prompt_rows = 64;
    options.beside = 0;  // long pieces wait as often as they can
    return options;
  }
  // What an idle engine without a cache says.
  std::string alone(const ClientPointer& asked) const {
    Engine engine(model_, tokenizer_, options(1));
    return run(engine, again(asked))->heard();
  }

  std::shared_ptr<const Model> model_;
  std::shared_ptr<const Tokenizer> tokenizer_;
};

// Chats of three turns and single texts come and go in a busy engine with a small cache.
TEST_P(ServedTexts, AreThoseOfAnIdleEngine) {
  constexpr int kChats = 6, kTurns = 3;
  constexpr int64_t kCacheBytes = 3 << 20;
  Random random(17, "served texts");
  const auto length = [&](int64_t least, int64_t most) {
    return least + static_cast<int64_t>(random.below(static_cast<uint64_t>(most - least)));
  };
  const std::vector<int32_t> system = random_tokens(37, 61, 1);
  std::vector<ClientPointer> open(kChats), done;
  std::vector<int> turns(kChats);
  Engine engine(model_, tokenizer_, options(3, kCacheBytes));
  uint64_t seed = 100;
  int cancelled = 0, hits = 0;
  for (int rounds = 0; rounds < 4000; ++rounds) {
    bool any = false;
    for (int chat = 0; chat < kChats; ++chat) {
      ClientPointer& now = open[static_cast<size_t>(chat)];
      if (now != nullptr && now->ends == 0) {
        any = true;
        continue;
      }
      if (now != nullptr) {
        done.push_back(now);
        if (now->summary.cached_tokens > 0) ++hits;
      }
      if (turns[static_cast<size_t>(chat)]++ >= kTurns) {
        now = nullptr;
        continue;
      }
      ++seed;
      const auto message = random_tokens(length(1, 60), 61, seed);
      const int64_t tokens = length(1, 30);
      const bool follows = now != nullptr && now->tokens.size() > 0;
      // One chat begins with a prompt of several pieces.
      now = follows
                ? next_turn(now, message, tokens, seed)
                : first_turn(chat == 0 ? random_tokens(300, 61, 2) : system, message, tokens, seed);
      submit(engine, now);
      any = true;
    }
    // Somebody who gives up at any time.
    if (rounds % 7 == 0) {
      ++seed;
      const ClientPointer other = client(random_tokens(length(1, 200), 61, seed), 50, seed);
      submit(engine, other);
      for (int64_t steps = length(0, 12); steps > 0; --steps) engine.step();
      engine.cancel(other->id);
      engine.step();
      EXPECT_EQ(other->ends, 1);
      if (other->summary.end == TextSummary::End::cancelled) ++cancelled;
      if (!other->tokens.empty()) {
        EXPECT_TRUE(alone(other).starts_with(other->text));
      }
    }
    engine.step();
    if (!any) break;
  }
  EXPECT_EQ(done.size(), size_t{kChats * kTurns});
  EXPECT_GT(hits, 3);
  for (const ClientPointer& asked : done) {
    EXPECT_EQ(asked->ends, 1);
    EXPECT_EQ(asked->summary.error, "");
    EXPECT_EQ(asked->heard(), alone(asked)) << asked->summary.cached_tokens;
  }
  const EngineCounters counters = engine.counters();
  EXPECT_EQ(counters.running, 0);
  EXPECT_EQ(counters.reading, 0);
  EXPECT_EQ(counters.waiting, 0);
  EXPECT_EQ(counters.waiting_tokens, 0);
  EXPECT_EQ(counters.state_bytes, 0);
  EXPECT_EQ(counters.cancelled, cancelled);
  EXPECT_LE(counters.cache_bytes, kCacheBytes);
}

// All of the earlier turn is there, its answer included; the closing token and the message are new.
TEST_P(ServedTexts, OfASecondTurnReadTheNewMessageOnly) {
  Engine engine(model_, tokenizer_, options(4, 1 << 28));
  const ClientPointer first =
      run(engine, first_turn(random_tokens(50, 61, 3), random_tokens(20, 61, 4), 21));
  EXPECT_EQ(first->summary.cached_tokens, 0);
  EXPECT_EQ(first->summary.cache, "no text is kept");
  const auto message = random_tokens(30, 61, 5);
  const ClientPointer second = run(engine, next_turn(first, message, 19));
  EXPECT_EQ(second->summary.cache, "hit");
  EXPECT_EQ(second->summary.cached_tokens, first->summary.prompt_tokens + 21 - 1);
  EXPECT_EQ(second->heard(), alone(second));
  // Without the ranges of answers, what was answered is read again, and the text is as without a
  // cache.
  ClientPointer unmarked = again(next_turn(second, message, 18));
  unmarked->request.answers.clear();
  run(engine, unmarked);
  EXPECT_EQ(unmarked->summary.cached_tokens, 70);
  EXPECT_EQ(unmarked->heard(), alone(unmarked));
  // Another answer to the same question.
  const ClientPointer other = client(second->request.prompt, 10, 99);
  other->request.message_ends = second->request.message_ends;
  other->request.answers = second->request.answers;
  run(engine, other);
  EXPECT_EQ(other->summary.cached_tokens, second->summary.prompt_tokens - 2);
  EXPECT_EQ(other->heard(), alone(other));
}

TEST_P(ServedTexts, DoNotDependOnThreadsOrRows) {
  std::vector<ClientPointer> asked;
  for (uint64_t i = 0; i < 5; ++i) {
    asked.push_back(client(random_tokens(static_cast<int64_t>(20 + 50 * i), 61, i), 12, i));
  }
  for (const int64_t rows : {1, 100, 1000}) {
    const Threads scope(rows == 100 ? 1 : 3);
    EngineOptions busy = options(5);
    busy.prompt_rows = rows;
    if (rows > 1) busy.beside = rows == 100 ? 1.0 : INFINITY;
    Engine engine(model_, tokenizer_, busy);
    std::vector<ClientPointer> clients;
    for (const ClientPointer& one : asked) {
      clients.push_back(again(one));
      submit(engine, clients.back());
      engine.step();
    }
    finish(engine);
    for (const ClientPointer& one : clients) EXPECT_EQ(one->heard(), alone(one)) << rows;
  }
}

TEST_P(ServedTexts, DoNotDependOnDrafters) {
  std::vector<ClientPointer> asked;
  for (uint64_t i = 0; i < 6; ++i) {
    // Texts that repeat themselves, so that some guesses are right.
    std::vector<int32_t> prompt = random_tokens(12, 61, i);
    for (int repeat = 0; repeat < 3; ++repeat) {
      const std::vector<int32_t> copy(prompt.begin(), prompt.begin() + 12);
      prompt.insert(prompt.end(), copy.begin(), copy.end());
    }
    asked.push_back(client(prompt, static_cast<int64_t>(10 + 7 * i), i));
    asked.back()->request.options.sampling.temperature = i % 2 == 0 ? 0 : 0.4;
    asked.back()->request.options.sampling.frequency_penalty = i == 3 ? 0.5 : 0;
  }
  const bool exits = model_->config().block_count() > 1 &&
                     std::string(GetParam()).find("subsampled") == std::string::npos;
  for (const std::string draft : {"ngram", "early-exit:1"}) {
    if (draft != "ngram" && !exits) continue;
    EngineOptions guessing = options(2, 1 << 28);
    guessing.draft = draft;
    guessing.draft_tokens = 3;
    Engine engine(model_, tokenizer_, guessing);
    std::vector<ClientPointer> clients;
    for (const ClientPointer& one : asked) {
      clients.push_back(again(one));
      submit(engine, clients.back());
      engine.step();
      engine.step();
    }
    finish(engine);
    int64_t drafted = 0;
    for (const ClientPointer& one : clients) {
      EXPECT_EQ(one->heard(), alone(one)) << draft;
      drafted += one->summary.drafted;
    }
    EXPECT_GT(drafted, 0) << draft;
    EXPECT_EQ(engine.counters().drafted, drafted);
    // What speculation wrote is kept like all else.
    const ClientPointer next = run(engine, next_turn(clients[5], random_tokens(9, 61, 8), 12));
    EXPECT_EQ(next->summary.cache, "hit");
    EXPECT_EQ(next->heard(), alone(next)) << draft;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ServedTexts,
                         testing::Values("transformer", "window", "mamba2", "gated_deltanet",
                                         "hybrid", "moe", "mla", "titans_mac", "ttt_linear",
                                         "subsampled_hybrid", "prefix", "rwkv7"),
                         [](const auto& test) { return std::string(test.param); });

// Ways to keep keys and values: windows that roll, pages that are chosen, halves.
TEST(ServedCaches, TextsAreThoseOfAnIdleEngine) {
  const auto model = tiny_model("transformer");
  const auto tokenizer = syllables();
  for (int way = 0; way < 4; ++way) {
    EngineOptions options;
    if (way == 0) options.kv_cache.window = 64;
    if (way == 1) options.kv_cache.quest_pages = 2;
    if (way == 2) options.kv_cache.type = DType::bf16;
    if (way == 3) options.kv_cache.type = DType::f16;
    const auto alone = [&](const ClientPointer& asked) {
      EngineOptions idle = options;
      idle.cache_bytes = 0;
      Engine engine(model, tokenizer, idle);
      return run(engine, again(asked))->heard();
    };
    Engine engine(model, tokenizer, options);
    const ClientPointer first =
        run(engine, first_turn(random_tokens(300, 61, 3), random_tokens(20, 61, 4), 21));
    const ClientPointer same = run(engine, again(first));
    EXPECT_EQ(same->summary.error, "");
    EXPECT_EQ(same->heard(), alone(first)) << way;
    EXPECT_EQ(same->summary.cached_tokens, 320);
    const ClientPointer second = run(engine, next_turn(first, random_tokens(30, 61, 5), 19));
    EXPECT_EQ(second->summary.cached_tokens, 322 + 20) << way;
    EXPECT_EQ(second->heard(), alone(second)) << way;
    const ClientPointer other = client(first->request.prompt, 5);
    other->request.prompt[310] = 1;
    run(engine, other);
    EXPECT_EQ(other->heard(), alone(other)) << way;
  }
}

// The state that a conversation leaves has the bits of one that read the same text cold.
TEST(ServedStates, AreThoseOfAColdRead) {
  for (const char* name : {"transformer", "hybrid", "gated_deltanet", "titans_mac"}) {
    const auto model = tiny_model(name);
    const std::vector<int32_t> text = random_tokens(420, 61, 9);
    const std::vector<int64_t> cuts = {40, 130};
    const std::vector<TokenRange> answers = {{130, 180}};
    const auto plan = reading_plan(420, cuts, answers);
    std::vector<std::string> scores;
    for (const int64_t step : {1, 3, 16}) {
      SequenceState state = model->new_state();
      Tensor last;
      for (const ReadingRun& run : plan) {
        const int64_t piece = run.exact ? step : run.tokens.size();
        read_in_pieces(
            run.tokens.size(),
            [&](int64_t done, int64_t count) {
              const auto part = std::span(text).subspan(
                  static_cast<size_t>(run.tokens.begin + done), static_cast<size_t>(count));
              const Tensor hidden = model->forward({}, continue_sequence(state, part));
              last = hidden.row_slice(count - 1, 1);
            },
            piece);
      }
      const Tensor logits = model->logits({}, last);
      scores.emplace_back(reinterpret_cast<const char*>(logits.values().data()),
                          logits.values().size_bytes());
    }
    EXPECT_EQ(scores[0], scores[1]) << name;
    EXPECT_EQ(scores[0], scores[2]) << name;
  }
}

}  // namespace
}  // namespace pronghorn
