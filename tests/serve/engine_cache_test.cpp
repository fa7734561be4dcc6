// What an engine keeps of texts that have ended, in memory and on disk.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/files.h"
#include "serve/clients.h"
#include "support/errors.h"
#include "support/folder.h"

namespace pronghorn {
namespace {

using namespace testing_support;
using testing::HasSubstr;

class EngineCache : public testing::Test {
 protected:
  Engine make(const EngineOptions& options = {}) const { return {model_, tokenizer_, options}; }

  std::shared_ptr<const Model> model_ = tiny_model("hybrid");
  std::shared_ptr<const Tokenizer> tokenizer_ = syllables();
};

// Memory of what has ended is given back, and the cache keeps to its size.
TEST_F(EngineCache, StaysWithinItsMemory) {
  EngineOptions options;
  options.cache_bytes = 4 << 20;
  options.cache_every = 32;
  Engine engine = make(options);
  for (uint64_t i = 0; i < 60; ++i) {
    run(engine, first_turn(random_tokens(40, 61, i % 7), random_tokens(30, 61, i), 5, i));
    EXPECT_LE(engine.counters().cache_bytes, options.cache_bytes);
    EXPECT_EQ(engine.counters().state_bytes, 0);
  }
  EXPECT_GT(engine.counters().cache_evictions, 10);
  EXPECT_GT(engine.counters().cache_states, 1);
  EXPECT_GT(engine.counters().cache_hits, 20);
}

TEST_F(EngineCache, SaltsShareNothing) {
  Engine engine = make();
  const ClientPointer first = first_turn(random_tokens(40, 61, 1), random_tokens(9, 61, 2), 5);
  first->request.cache_salt = "one";
  run(engine, first);
  const ClientPointer same = again(first), other = again(first), none = again(first);
  other->request.cache_salt = "other";
  none->request.use_cache = false;
  EXPECT_EQ(run(engine, same)->summary.cached_tokens, 49);
  EXPECT_EQ(run(engine, other)->summary.cached_tokens, 0);
  EXPECT_EQ(run(engine, none)->summary.cached_tokens, 0);
  EXPECT_EQ(none->summary.cache, "the request wants none");
  EXPECT_EQ(engine.counters().cache_hits, 1);
  EXPECT_EQ(engine.counters().cache_misses, 2);
  EXPECT_EQ(other->heard(), same->heard());
  EXPECT_EQ(none->heard(), same->heard());
}

// Texts of no messages: a state is kept where texts were seen to part.
TEST_F(EngineCache, ABranchIsKeptWhenItIsSeenTwice) {
  Engine engine = make();
  const auto common = random_tokens(600, 61, 1);
  const auto ask = [&](uint64_t seed) {
    std::vector<int32_t> prompt = common;
    const auto own = random_tokens(50, 61, seed);
    prompt.insert(prompt.end(), own.begin(), own.end());
    return run(engine, client(prompt, 3));
  };
  EXPECT_EQ(ask(11)->summary.cached_tokens, 0);
  const ClientPointer second = ask(12);
  EXPECT_EQ(second->summary.cached_tokens, 0);
  EXPECT_THAT(second->summary.cache, HasSubstr("for 512 tokens, and no state is kept there"));
  EXPECT_EQ(ask(13)->summary.cached_tokens, 512);
}

TEST_F(EngineCache, KeptStatesSurviveARestart) {
  const Folder folder;
  EngineOptions options;
  options.cache_directory = folder.path() / "cache";
  ClientPointer first = first_turn(random_tokens(300, 61, 1), random_tokens(9, 61, 2), 25);
  std::string cold;
  {
    Engine engine = make(options);
    run(engine, first);
    EXPECT_THAT(error_of([&] { make(options); }), HasSubstr("cache"));  // it is held
  }
  const ClientPointer second = next_turn(first, random_tokens(8, 61, 3), 12);
  {
    Engine engine = make(options);
    EXPECT_GT(engine.counters().cache_states, 0);
    run(engine, second);
    EXPECT_EQ(second->summary.cached_tokens, first->summary.prompt_tokens + 24);
  }
  Engine fresh = make();
  EXPECT_EQ(run(fresh, again(second))->heard(), second->heard());
  // Damaged ones are removed.
  int damaged = 0;
  for (const auto& entry : std::filesystem::directory_iterator(options.cache_directory)) {
    if (entry.path().extension() != ".state") continue;
    std::string bytes = read_file(entry.path());
    if (damaged % 2 == 0) {
      bytes.resize(bytes.size() / 2);
    } else {
      bytes[bytes.size() - 40] ^= 1;
    }
    write_file(entry.path(), bytes);
    ++damaged;
  }
  EXPECT_GT(damaged, 1);
  {
    Engine engine = make(options);
    EXPECT_EQ(engine.counters().cache_states, 0);
    EXPECT_EQ(run(engine, again(second))->heard(), second->heard());
  }
  // Another model's are not taken.
  const Engine other(tiny_model("hybrid", 77), tokenizer_, options);
  EXPECT_EQ(other.counters().cache_states, 0);
}

// Of attention the longest state of a text has all others; the oldest files go.
TEST_F(EngineCache, FilesOfTheCacheAreBounded) {
  const Folder folder;
  EngineOptions options;
  options.cache_directory = folder.path() / "cache";
  const auto files = [&] {
    std::vector<uintmax_t> sizes;
    for (const auto& entry : std::filesystem::directory_iterator(options.cache_directory)) {
      if (entry.path().extension() == ".state") sizes.push_back(entry.file_size());
    }
    return sizes;
  };
  const auto attention = tiny_model("transformer");
  ClientPointer turn = first_turn(random_tokens(100, 61, 1), random_tokens(20, 61, 2), 9);
  {
    Engine engine(attention, tokenizer_, options);
    run(engine, turn);
    turn = run(engine, next_turn(turn, random_tokens(20, 61, 3), 9));
    EXPECT_GT(engine.counters().cache_states, 3);
  }
  EXPECT_EQ(files().size(), 1u);
  {
    Engine engine(attention, tokenizer_, options);
    EXPECT_EQ(run(engine, again(turn))->summary.cached_tokens, turn->summary.prompt_tokens - 2);
  }
  options.cache_directory = folder.path() / "small";
  options.cache_bytes = 4 << 20;
  {
    Engine engine = make(options);
    for (uint64_t i = 0; i < 20; ++i) {
      run(engine, first_turn(random_tokens(40, 61, i), random_tokens(30, 61, i), 5, i));
      for (int step = 0; step < 3; ++step) engine.step();
    }
  }
  uintmax_t sum = 0;
  for (const uintmax_t size : files()) sum += size;
  EXPECT_GT(sum, 0u);
  EXPECT_LE(sum, static_cast<uintmax_t>(options.cache_bytes));
}

// A cache hit inside a character: the bytes before it are remembered.
TEST(EngineCacheBytes, ACharacterMayLieAcrossACut) {
  ModelConfig config = tiny_model("hybrid")->config();
  config.vocab_size = 256;
  const auto model = std::make_shared<const Model>(config, 23);
  const std::shared_ptr<const Tokenizer> bytes = make_byte_tokenizer();
  // The prompt ends in the middle of a character, and so does what is kept of it.
  std::vector<int32_t> prompt(60, 'a');
  prompt.insert(prompt.end(), {0xF0, 0x9F, 0x98});
  const ClientPointer cold = client(prompt, 1);
  cold->request.message_ends = {62};
  cold->request.options.sampling.logit_bias = {{0x80, 1000.0f}};
  Engine engine(model, bytes, {});
  EXPECT_EQ(run(engine, cold)->text, "\xF0\x9F\x98\x80");
  const ClientPointer hit = run(engine, again(cold));
  EXPECT_EQ(hit->summary.cached_tokens, 62);
  EXPECT_EQ(hit->text, cold->text);
}

}  // namespace
}  // namespace pronghorn
