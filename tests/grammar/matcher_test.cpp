// Matching: against a recogniser that tries everything, byte by byte and token by token.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/log.h"
#include "base/random.h"
#include "grammar/grammar_store.h"
#include "grammar/naive_recogniser.h"
#include "grammar/random_grammars.h"
#include "grammar/text_rules.h"
#include "support/errors.h"

namespace pronghorn {
namespace {

using namespace testing_support;
using testing::HasSubstr;

// A text that the grammar may begin, of some bytes, now and then with a wrong one.
std::string random_text(const Grammar& grammar, Random& random) {
  Pushdown machine(grammar);
  Pushdown::State state = machine.start();
  std::string text;
  for (uint64_t left = random.below(14); left > 0; --left) {
    std::vector<uint8_t> allowed;
    for (const uint8_t byte : std::string("abc\xC3\xA9\xA8\xE6\xBC\xA2")) {
      if (machine.step(state, byte) != Pushdown::kDead) allowed.push_back(byte);
    }
    if (allowed.empty()) break;
    const uint8_t byte = random.below(12) == 0 ? 'b' : allowed[random.below(allowed.size())];
    text.push_back(static_cast<char>(byte));
    state = machine.step(state, byte);
    if (state == Pushdown::kDead) break;
  }
  return text;
}

TEST(Matcher, AgreesWithARecogniserThatTriesEverything) {
  Random random(3, "grammars");
  int accepted = 0, begun = 0, refused = 0;
  for (int i = 0; i < 300; ++i) {
    const GrammarRules rules = RandomGrammar(random).make();
    const Grammar grammar(rules);
    Pushdown machine(grammar);
    for (int j = 0; j < 12; ++j) {
      const std::string text = random_text(grammar, random);
      Pushdown::State state = machine.start();
      for (const char byte : text) state = machine.step(state, static_cast<uint8_t>(byte));
      const NaiveRecogniser naive(rules, text);
      ASSERT_EQ(machine.complete(state), naive.accepts()) << "grammar " << i << ": " << text;
      ASSERT_EQ(state != Pushdown::kDead, naive.begins()) << "grammar " << i << ": " << text;
      ++(naive.accepts() ? accepted : naive.begins() ? begun : refused);
    }
  }
  EXPECT_GT(accepted, 300);
  EXPECT_GT(begun, 300);
  EXPECT_GT(refused, 100);
}

// The tokens of a mask are those that can be taken, one by one; whatever was kept before.
TEST(Matcher, MasksAreTheTokensThatCanBeTaken) {
  Random random(4, "masks");
  int64_t allowed = 0, forbidden = 0;
  for (int i = 0; i < 60; ++i) {
    const std::shared_ptr<const Tokenizer> tokenizer = random_tokenizer(random, 400);
    const auto vocabulary =
        std::make_shared<const TokenVocabulary>(*tokenizer, tokenizer->vocab_size());
    const auto grammar =
        std::make_shared<TokenGrammar>(Grammar(RandomGrammar(random).make()), vocabulary);
    for (int text = 0; text < 3; ++text) {
      GrammarState state(grammar, {});
      for (int step = 0; step < 6 && !state.ended(); ++step) {
        const TokenMask mask = state.allowed();
        std::vector<int32_t> tokens;
        for (int32_t token = 0; token < tokenizer->vocab_size(); ++token) {
          GrammarState fork = state;
          const bool taken = fork.take(token);
          ASSERT_EQ(mask.allows(token), taken) << "grammar " << i << ", token " << token;
          ++(taken ? allowed : forbidden);
          if (taken) tokens.push_back(token);
        }
        ASSERT_FALSE(tokens.empty());
        ASSERT_TRUE(state.take(tokens[random.below(tokens.size())]));
      }
    }
  }
  EXPECT_GT(allowed, 5000);
  EXPECT_GT(forbidden, 5000);
}

TEST(Matcher, StatesMoveToOtherMachines) {
  Random random(5, "machines");
  for (int i = 0; i < 50; ++i) {
    const Grammar grammar(RandomGrammar(random).make());
    Pushdown one(grammar), other(grammar);
    const std::string text = random_text(grammar, random);
    Pushdown::State at = one.start();
    for (size_t moved = 0; moved < text.size(); ++moved) {
      Pushdown::State here = at, there = other.import(one, at);
      for (size_t i = moved; i < text.size(); ++i) {
        here = one.step(here, static_cast<uint8_t>(text[i]));
        there = other.step(there, static_cast<uint8_t>(text[i]));
      }
      EXPECT_EQ(one.complete(here), other.complete(there));
      EXPECT_EQ(here == Pushdown::kDead, there == Pushdown::kDead);
      at = one.step(at, static_cast<uint8_t>(text[moved]));
    }
  }
}

std::shared_ptr<TokenGrammar> byte_grammar(const std::string& text) {
  static const std::shared_ptr<const Tokenizer> bytes = make_byte_tokenizer();
  return std::make_shared<TokenGrammar>(Grammar(parse_grammar(text)),
                                        std::make_shared<const TokenVocabulary>(*bytes, 260));
}

bool accepts(const std::string& grammar, const std::string& text) {
  GrammarState state(byte_grammar(grammar), {});
  return state.take_bytes(text) && state.complete();
}

TEST(Matcher, EndsAreAllowedWhereTheTextIsComplete) {
  GrammarState state(byte_grammar("root ::= \"a\" \"b\"?"), {257, 258});
  EXPECT_FALSE(state.complete());
  EXPECT_FALSE(state.take(257));
  EXPECT_EQ(state.allowed().count(), 1);
  EXPECT_TRUE(state.take('a'));
  EXPECT_TRUE(state.complete());
  EXPECT_FALSE(state.ended());
  EXPECT_EQ(state.allowed().count(), 3);
  GrammarState fork = state;
  EXPECT_TRUE(fork.take(258));
  EXPECT_TRUE(fork.ended());
  EXPECT_FALSE(fork.take('b'));
  EXPECT_TRUE(state.take('b'));
  EXPECT_TRUE(state.ended());
  EXPECT_FALSE(state.take(259));  // stands for no bytes
}

TEST(Matcher, StacksAreAsDeepAsTheText) {
  constexpr int kDepth = 50000;
  const std::string grammar = "root ::= \"[\" root \"]\" | \"x\"";
  const std::string text = std::string(kDepth, '[') + "x" + std::string(kDepth, ']');
  EXPECT_TRUE(accepts(grammar, text));
  EXPECT_FALSE(accepts(grammar, text + "]"));
  EXPECT_FALSE(accepts(grammar, text.substr(1)));
}

// Each of the letters may belong to either of two choices: 2^n ways, and one stack for each length.
TEST(Matcher, ManyWaysAreFollowedAtOnce) {
  const std::string grammar = "root ::= \"a\" root \"b\" | \"a\" root \"c\" | \"a\"";
  std::string text(200, 'a');
  for (int i = 0; i < 199; ++i) text += i % 3 == 0 ? 'b' : 'c';
  EXPECT_TRUE(accepts(grammar, text));
  EXPECT_FALSE(accepts(grammar, text + "c"));
  EXPECT_TRUE(accepts("root ::= (\"a\"+)+ \"b\"", std::string(3000, 'a') + "b"));
  EXPECT_TRUE(accepts("root ::= ((\"a\"?)* \"b\"?)* \"c\"", std::string(3000, 'a') + "c"));
}

TEST(Matcher, LargeRepeatsAreCounted) {
  const std::string grammar = "root ::= ([a-z]{999999} \"!\"){1,1000000}";
  const double start = now_seconds();
  GrammarState state(byte_grammar(grammar), {});
  EXPECT_EQ(state.allowed().count(), 26);
  EXPECT_LT(now_seconds() - start, 1.0);
  const std::string small = "root ::= [a-z]{100,300}";
  EXPECT_FALSE(accepts(small, std::string(99, 'x')));
  EXPECT_TRUE(accepts(small, std::string(100, 'x')));
  EXPECT_TRUE(accepts(small, std::string(300, 'x')));
  EXPECT_FALSE(accepts(small, std::string(301, 'x')));
}

// So many ways that following them all would take forever: an error within a bounded time.
TEST(Matcher, UnreasonableEffortIsAnError) {
  const double start = now_seconds();
  const std::string message = error_of([] {
    GrammarState state(
        byte_grammar("root ::= (a{1,1000}){1,1000} \"!\"\n"
                     "a ::= \"x\" | \"xx\" | \"xxx\" | \"xxxx\" | (\"x\"{1,100}){1,100}"),
        {});
    for (int i = 0; i < 100000; ++i) {
      if (!state.take('x')) break;
    }
  });
  EXPECT_THAT(message, HasSubstr("too many ways"));
  EXPECT_LT(now_seconds() - start, 20.0);
}

TEST(Matcher, GrammarsThatCannotBeFollowedAreRefused) {
  const auto refusal = [](const std::string& text) {
    return error_of([&] { Grammar(parse_grammar(text)); });
  };
  EXPECT_THAT(refusal("root ::= root \"a\" | \"b\""), HasSubstr("left recursion"));
  EXPECT_THAT(refusal("root ::= a \"x\"\na ::= b\nb ::= \"y\"? a | \"z\""),
              HasSubstr("left recursion"));
  EXPECT_THAT(refusal("root ::= \"a\" root"), HasSubstr("no text ends"));
  // Beginning with itself through what may be empty, many times over.
  EXPECT_THAT(refusal("root ::= (\"a\"* root)* \"b\""), HasSubstr("left recursion"));
}

TEST(Matcher, ChoicesWithoutAnEndAreLeftOut) {
  GrammarState state(byte_grammar("root ::= \"a\" loop | \"b\"\nloop ::= \"x\" loop"), {});
  EXPECT_EQ(state.allowed().count(), 1);
  EXPECT_FALSE(state.take('a'));
}

// Many sets of bytes are told apart in a bounded time, and grammars are bounded in size.
TEST(Matcher, LargeGrammarsTakeBoundedTime) {
  std::string sets = "root ::= ", large = sets;
  for (int i = 0; i < 6000; ++i) {
    sets += fmt::format("[\\x{:02x}-\\x{:02x}]? ", 0x21 + i % 40, 0x50 + i * 7 % 40);
    large += "\"abcdefghijklmnopqrstuvwxyz\" ";
  }
  const double start = now_seconds();
  EXPECT_EQ(error_of([&] { Grammar(parse_grammar(sets)); }), "no error");
  EXPECT_THAT(error_of([&] { Grammar(parse_grammar(large)); }), HasSubstr("places"));
  EXPECT_LT(now_seconds() - start, 10.0);
}

// A text of some thousand nested values, in a machine that is renewed now and then, goes on as it
// would in one that never is.
TEST(Matcher, LongTextsTakeBoundedMemory) {
  const auto grammar =
      byte_grammar("root ::= (item \";\")*\nitem ::= \"(\" item* \")\" | [0-9]{1,200}");
  GrammarState state(grammar, {});
  Random random(6, "long");
  for (int i = 0; i < 300; ++i) {
    const auto depth = static_cast<size_t>(1 + random.below(300));
    const std::string text = std::string(depth, '(') + std::string(1 + random.below(200), '7') +
                             std::string(depth, ')') + ";";
    ASSERT_TRUE(state.take_bytes(text)) << i;
    ASSERT_TRUE(state.complete());
    ASSERT_EQ(state.allowed().count(), 11);
  }
}

// The bytes, and three special tokens behind them.
class MarkedTokenizer final : public Tokenizer {
 public:
  MarkedTokenizer() : Tokenizer({}) {}
  std::vector<int32_t> encode(std::string_view, const EncodeOptions&) const override { return {}; }
  std::string token_bytes(int32_t id, bool special) const override {
    if (id < kCall) return std::string(1, static_cast<char>(id));
    return special ? kNames[static_cast<size_t>(id - kCall)] : "";
  }
  bool is_special(int32_t id) const override { return id >= kCall; }
  int64_t vocab_size() const override { return kEnd + 1; }

  static constexpr int32_t kCall = 256, kCallEnd = 257, kEnd = 258;

 private:
  static constexpr const char* kNames[] = {"<call>", "</call>", "<end>"};
};

TEST(Matcher, SpecialTokensMatchTheirTextInLiteralsAndNowhereElse) {
  using T = MarkedTokenizer;
  GrammarStore store(std::make_shared<T>(), T::kEnd + 1);
  const auto state = [&](const std::string& grammar, const std::string& schema,
                         std::vector<int32_t> ends = {}) {
    return GrammarState(written_grammar(grammar, schema, store), std::move(ends));
  };
  GrammarState call = state("root ::= \"<call>\" .{1,9} \"</call>!\"", "");
  EXPECT_EQ(call.allowed().count(), 2);  // the token, or its first letter
  GrammarState letters = call;
  ASSERT_TRUE(call.take(T::kCall));
  for (const int32_t other : {T::kCall, T::kCallEnd, T::kEnd, 0xFF}) {
    EXPECT_FALSE(call.allowed().allows(other)) << other;
    EXPECT_FALSE(GrammarState(call).take(other)) << other;
  }
  ASSERT_TRUE(call.take('x'));
  EXPECT_TRUE(call.allowed().allows(T::kCallEnd));
  EXPECT_FALSE(call.allowed().allows(T::kCall));
  ASSERT_TRUE(call.take(T::kCallEnd) && call.take('!'));
  EXPECT_TRUE(call.complete() && call.ended());
  EXPECT_TRUE(letters.take_bytes("<call>x</call>!") && letters.complete());

  GrammarState constant = state("", R"({"const": "<call>"})");
  EXPECT_TRUE(constant.take('"') && constant.take(T::kCall) && constant.take('"'));
  EXPECT_TRUE(constant.complete());
  GrammarState string = state("", R"({"type": "string"})");
  EXPECT_TRUE(string.take('"') && !string.take(T::kCall));

  const auto until = store.get("until", [] {
    GrammarRules rules;
    const int32_t text = add_text_until(rules, "</call>");
    rules.start = rules.declare("root");
    rules.define(rules.start, text);
    return rules;
  });
  GrammarState text(until, {});
  EXPECT_TRUE(text.take('<') && text.take(T::kCallEnd) && text.ended());

  // A token that ends texts does so where the grammar has it last, and comes nowhere else.
  GrammarState last = state("root ::= \"a<end>\"", "", {T::kEnd});
  EXPECT_FALSE(last.take(T::kEnd));
  ASSERT_TRUE(last.take('a'));
  EXPECT_EQ(last.allowed().count(), 2);
  EXPECT_TRUE(last.take(T::kEnd) && last.ended());
  GrammarState inside = state("root ::= \"a<end>b\"", "", {T::kEnd});
  ASSERT_TRUE(inside.take('a'));
  EXPECT_EQ(inside.allowed().count(), 1);
  EXPECT_FALSE(inside.take(T::kEnd));
}

TEST(Matcher, StoresKeepWhatWasUsedLast) {
  const std::string small = "root ::= \"a\"";
  const size_t one = byte_grammar(small)->bytes();
  GrammarStore store(make_byte_tokenizer(), 256, 20 * one);
  int made = 0;
  const auto get = [&](const std::string& name) {
    return store.get(name, [&] {
      ++made;
      return parse_grammar("root ::= \"" + name + "\"");
    });
  };
  const auto first = get("a");
  EXPECT_EQ(get("a"), first);
  EXPECT_EQ(made, 1);
  for (int i = 0; i < 40; ++i) {
    get("b" + std::to_string(i));
    get("a");
  }
  EXPECT_EQ(made, 41);
  get("b39");
  EXPECT_EQ(made, 41);
  get("b0");
  EXPECT_EQ(made, 42);
  // By their bytes: what texts have made of one counts, and what is large takes the room of many.
  const size_t before = first->bytes();
  EXPECT_TRUE(GrammarState(first, {}).take('a'));
  EXPECT_GT(first->bytes(), before);
  get(std::string(2000, 'x'));
  EXPECT_EQ(made, 43);
  get("a");
  EXPECT_EQ(made, 44);
  GrammarStore tight(make_byte_tokenizer(), 256, 1);
  const auto kept = written_grammar(small, "", tight);
  EXPECT_EQ(written_grammar(small, "", tight), kept);
  EXPECT_EQ(written_grammar("", "", store), nullptr);
  EXPECT_NE(written_grammar("", "true", store), nullptr);
  EXPECT_THROW(written_grammar("root ::= \"a\"", "true", store), UsageError);
}

}  // namespace
}  // namespace pronghorn
