// Grammars and patterns as texts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <regex>

#include "base/error.h"
#include "base/random.h"
#include "formats/utf8.h"
#include "grammar/code_set.h"
#include "grammar/grammar.h"
#include "grammar/json_rules.h"
#include "grammar/pattern_rules.h"
#include "grammar/pushdown.h"
#include "grammar/text_rules.h"
#include "support/errors.h"

namespace pronghorn {
namespace {

using namespace testing_support;
using testing::HasSubstr;

bool accepts(const Grammar& grammar, std::string_view text) {
  Pushdown machine(grammar);
  Pushdown::State state = machine.start();
  for (const char byte : text) state = machine.step(state, static_cast<uint8_t>(byte));
  return machine.complete(state);
}

TEST(GrammarText, SaysWhatItSays) {
  const Grammar grammar(parse_grammar(R"(
    # A comment.
    root ::= greeting " " name "!"?   # another
    greeting ::= "hello" | "good " ("morning" | "evening")
    name ::=
      [A-Z] [a-z]{1,3}
      | "\u00e9\x41\"\n" | [^a-y\]] . | pair{2} | ""
    pair ::= "<" [0-9]+ ">"
  )"));
  for (const char* text : {"hello Bob", "good morning Bob!", "hello \u00e9A\"\n", "hello z\u6f22!",
                           "hello <1><23>", "hello ", "hello !", "hello Abcd"}) {
    EXPECT_TRUE(accepts(grammar, text)) << text;
  }
  for (const char* text : {"hello bob", "hello", "good Bob", "hello <1>", "hello Abcde", "hello ]x",
                           "hello Bob!!", "hello z\xE6\xBC"}) {
    EXPECT_FALSE(accepts(grammar, text)) << text;
  }
}

TEST(GrammarText, ErrorsNameLineAndColumn) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "grammar:1:1: has no rule"},
      {"a ::= \"x\"", "has no rule 'root'"},
      {"root ::= \"x", "grammar:1:10: this literal is not closed"},
      {"root ::= \"a\"\n  b", "grammar:2:3: there is no rule"},
      {"root ::= \"\u00e9\" )", "grammar:1:14: this parenthesis closes no group"},
      {"root ::= ( \"a\"", "grammar:1:10: this group is not closed"},
      {"root ::= [a-", "these characters are not closed"},
      {"root ::= [z-a]", "grammar:1:11: the range runs backwards"},
      {"root ::= \"a\"{3,2}", "grammar:1:13: at least 3 and at most 2"},
      {"root ::= \"a\"{9999999}", "more than 1000000 repeats"},
      {"root ::= \"\\q\"", "grammar:1:11: unknown escape"},
      {"root ::= \"\\ud800\"", "is no character"},
      {"root ::= \"a\"\nroot ::= \"b\"", "grammar:2:1: the rule 'root' is defined twice"},
      {"root = \"a\"", "grammar:1:6: expected ::="},
      {"root ::= \"a\" + + + + + +", "too many repeats"},
      {"root ::= \"\xff\"", "is not UTF-8"},
      {"root ::= *", "unexpected"},
      {"root ::= " + std::string(200, '('), "nested deeper"},
  };
  for (const auto& [text, message] : cases) {
    EXPECT_THAT(error_of([&, text = text] { parse_grammar(text); }), HasSubstr(message)) << text;
  }
}

TEST(CodeSets, BytesAreThoseOfTheirMembers) {
  const std::vector<CodeSet> sets = {CodeSet(0, CodeSet::kLast), CodeSet(0x7F, 0x80),
                                     CodeSet(0x7FE, 0x1005),     CodeSet(0xFFFE, 0x10001),
                                     CodeSet(0xD000, 0xE001),    CodeSet('a', 'a').complement()};
  for (const CodeSet& set : sets) {
    const std::vector<ByteSequence> sequences = utf8_sequences(set);
    const auto matches = [&](const std::string& bytes) {
      return std::ranges::count_if(sequences, [&](const ByteSequence& sequence) {
        if (static_cast<size_t>(sequence.length) != bytes.size()) return false;
        for (size_t i = 0; i < bytes.size(); ++i) {
          const auto byte = static_cast<uint8_t>(bytes[i]);
          if (byte < sequence.bytes[i].first || byte > sequence.bytes[i].last) return false;
        }
        return true;
      });
    };
    uint64_t members = 0;
    for (uint32_t code = 0; code <= CodeSet::kLast; code += code < 0x12000 ? 1 : 997) {
      if (code >= 0xD800 && code <= 0xDFFF) continue;
      std::string bytes;
      append_utf8(code, bytes);
      ASSERT_EQ(matches(bytes), set.contains(code) ? 1 : 0) << code;
      members += set.contains(code) ? 1 : 0;
    }
    EXPECT_GT(members, 0u);
    EXPECT_EQ(matches("\xED\xA0\x80"), 0);  // a surrogate
    EXPECT_EQ(set.size() + set.complement().size(), 0x110000u - 0x800u);
    EXPECT_TRUE(set.common(set.complement()).empty());
  }
}

GrammarRules pattern_rules(const std::string& pattern) {
  GrammarRules rules;
  const int32_t text = add_pattern(
      rules, pattern, [&](const CodeSet& set) { return rules.characters(set); }, "pattern");
  rules.start = rules.declare("root");
  rules.define(rules.start, text);
  return rules;
}

// The standard library's regular expressions find the same, in texts of a few letters.
TEST(Patterns, FindWhatTheReferenceFinds) {
  const std::vector<std::string> patterns = {"a",
                                             "^a",
                                             "a$",
                                             "^a$",
                                             "^$",
                                             "^(?:a|b)*c$",
                                             "^a|b$",
                                             "ab{2,3}",
                                             "^a{0}b?$",
                                             "^[^a-b]+$",
                                             "^[\\d_]{2}-\\w$",
                                             "^\\s*\\S$",
                                             "^.a.$",
                                             "^(a+)+b$",
                                             "^\\x61\\u0062$",
                                             "^[\\]\\-a]+$",
                                             "^a*?b+?$",
                                             "(ab|cd|)$",
                                             "^[a-c1-3]{1,2}$",
                                             "\\.",
                                             "^[-a]$",
                                             "^[a-]$"};
  const std::string letters = "abc1_ .-]d\n";
  Random random(8, "patterns");
  for (const std::string& pattern : patterns) {
    const Grammar grammar(pattern_rules(pattern));
    const std::regex reference(pattern, std::regex::ECMAScript);
    for (int i = 0; i < 400; ++i) {
      std::string text;
      for (uint64_t n = random.below(6); n > 0; --n) text += letters[random.below(letters.size())];
      ASSERT_EQ(accepts(grammar, text), std::regex_search(text, reference))
          << pattern << ": " << text;
    }
  }
}

TEST(Patterns, WhatIsNotRegularIsRefused) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"(?=a)b", "looks ahead"},        {"(?<!a)b", "looks ahead"},
      {"(a)\\1", "reference"},          {"a\\b", "word boundary"},
      {"\\p{L}", "Unicode properties"}, {"a(", "not closed"},
      {"a)", "closes no group"},        {"[a", "not closed"},
      {"a**", "repeats a repeat"},      {"*a", "repeats nothing"},
      {"a{3,1}", "wrong way"},          {"a^b", "anchor inside"},
      {"(a$)b", "anchor inside"},       {"\\", "backslash"},
      {"[b-a]", "backwards"},           {"a{2000000}", "repeats more"}};
  for (const auto& [pattern, message] : cases) {
    EXPECT_THAT(error_of([&, pattern = pattern] { pattern_rules(pattern); }), HasSubstr(message))
        << pattern;
  }
  EXPECT_NE(error_of([] { pattern_rules(std::string(100, '(')); }), "");
}

TEST(TextRules, ATextGoesUntilItsEnd) {
  GrammarRules rules;
  const int32_t text = add_text_until(rules, "</th</think>");
  rules.start = rules.declare("root");
  rules.define(rules.start, text);
  const Grammar grammar(rules);
  for (const char* good : {"</th</think>", "abc</th</think>", "</th</th</think>",
                           "</</th</th</think>", "\u6f22</th</think>"}) {
    EXPECT_TRUE(accepts(grammar, good)) << good;
  }
  for (const char* bad : {"", "</think>", "</th</think>x", "</th</think></th</think>"}) {
    EXPECT_FALSE(accepts(grammar, bad)) << bad;
  }
}

// All whole numbers near the bounds, and numbers with fractions.
TEST(JsonNumbers, BoundsAreKept) {
  const std::vector<std::pair<int, int>> ranges = {{0, 0},    {0, 9},    {3, 17},  {-5, 5},
                                                   {-17, -3}, {99, 101}, {-1, 0},  {10, 1000},
                                                   {-100, 7}, {1, 1},    {-9, -9}, {190, 209}};
  for (const auto& [least, most] : ranges) {
    for (int open = 0; open < 4; ++open) {
      NumberBounds bounds;
      bounds.least = least;
      bounds.most = most;
      bounds.above_least = (open & 1) != 0;
      bounds.below_most = (open & 2) != 0;
      const auto inside = [&, least = least, most = most](double value) {
        return (bounds.above_least ? value > least : value >= least) &&
               (bounds.below_most ? value < most : value <= most);
      };
      const auto grammar_of = [&](int32_t (JsonRules::*make)(const NumberBounds&)) {
        GrammarRules rules;
        JsonRules json(rules);
        const int32_t number = (json.*make)(bounds);
        rules.start = rules.declare("root");
        rules.define(rules.start, number);
        return Grammar(rules);
      };
      const int count = most - least + 1 - (open & 1) - (open >> 1);
      if (count <= 0) {
        EXPECT_THROW(grammar_of(&JsonRules::integer), UsageError);
        continue;
      }
      const Grammar integers = grammar_of(&JsonRules::integer);
      const Grammar numbers = grammar_of(&JsonRules::number);
      for (int value = least - 120; value <= most + 120; ++value) {
        const std::string text = std::to_string(value);
        ASSERT_EQ(accepts(integers, text), inside(value)) << least << " " << most << " " << text;
        ASSERT_EQ(accepts(numbers, text), inside(value)) << least << " " << most << " " << text;
        for (const char* fraction : {".5", ".0", ".001", ".999"}) {
          const double number = std::stod(text + fraction);
          ASSERT_EQ(accepts(numbers, text + fraction), inside(number)) << text << fraction;
        }
      }
      EXPECT_FALSE(accepts(integers, "0" + std::to_string(most)));
    }
  }
}

}  // namespace
}  // namespace pronghorn
