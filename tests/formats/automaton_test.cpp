// Patterns that have a table are matched as the library matches them.
//
//   PRONGHORN_CHARACTERS=1000000 build/tests/formats_test --gtest_filter='AutomatonTest.*'
//
// compares on that many random characters for each pattern, and on every character there is.
#include "formats/automaton.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/random.h"
#include "formats/gguf_pre.h"
#include "formats/regex.h"
#include "formats/unicode_tables.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

size_t wanted_characters() {
  const char* const wanted = std::getenv("PRONGHORN_CHARACTERS");
  return wanted == nullptr ? 20'000 : std::strtoull(wanted, nullptr, 10);
}

class RandomText {
 public:
  explicit RandomText(uint64_t seed) : random_(seed) {}

  std::string make(size_t characters) {
    constexpr std::string_view kParts[] = {"'s",       "'LL",       "'Ve",
                                           "don't ",   "'\xC5\xBF", "'\xE2\x84\xAA",
                                           "we'd've",  "CamelCase", "ABCdef",
                                           "\r\n",     "\n\n ",     " \n",
                                           "  \t",     "1234567",   "3.14",
                                           "//--==",   "(x)",       "<s>",
                                           "[",        "\\]&&^-",   "a/b/",
                                           "\xCC\x81", "IMGIMGABZ", "<sentinel:12>",
                                           "$100",     "`~^",       "\xEF\xBC\x81 \xE2\x80\xA6"};
    // Where scripts, signs, marks and spaces are.
    constexpr CodeRange kRanges[] = {{0x20, 0x7E},       {0x0, 0x1F},        {0x80, 0x24F},
                                     {0x300, 0x36F},     {0x370, 0x52F},     {0x590, 0x6FF},
                                     {0x900, 0xDFF},     {0x1680, 0x1680},   {0x1C80, 0x1CBF},
                                     {0x2000, 0x206F},   {0x20A0, 0x214F},   {0x2160, 0x2188},
                                     {0x3000, 0x30FF},   {0x4E00, 0x9FFF},   {0xAC00, 0xD7FF},
                                     {0xFF00, 0xFFEF},   {0x1D400, 0x1D7FF}, {0x1F300, 0x1FAFF},
                                     {0x20000, 0x323AF}, {0x1, 0xD7FF},      {0xE000, 0x10FFFF}};
    std::string text;
    for (size_t made = 0; made < characters;) {
      const size_t kind = below(6);
      if (kind == 0) {
        const std::string_view part = kParts[below(std::size(kParts))];
        text += part;
        made += part.size();
      } else if (kind == 1) {
        const size_t count = 1 + below(6);
        text.append(count, " \n\r\t\xB'"[below(6)]);
        made += count;
      } else if (kind == 2) {
        const StandIn& row = kStandIns[below(kStandIns.size())];
        append_utf8(row.first + static_cast<uint32_t>(below(row.last - row.first + 1)), text);
        ++made;
      } else {
        const CodeRange& range = kRanges[below(kind < 4 ? 1 : std::size(kRanges))];
        for (size_t count = 1 + below(7); count-- > 0; ++made) {
          append_utf8(range.first + static_cast<uint32_t>(below(range.last - range.first + 1)),
                      text);
        }
      }
    }
    return text;
  }

 private:
  size_t below(size_t bound) { return random_.below(bound); }
  Random random_;
};

// Every step-th character, with something after it that begins words and something that does not.
std::string every_character(uint32_t step) {
  std::string text;
  for (uint32_t code = 0; code <= kLastCode; code += step) {
    if (code >= 0xD800 && code < 0xE000) continue;
    append_utf8(code, text);
    text += code / step % 3 == 0 ? "a" : code / step % 3 == 1 ? " " : "'s";
  }
  return text;
}

std::vector<std::string> patterns() {
  std::vector<std::string> all = {"(?i:[sdmt]|ll|ve|re)",
                                  R"([^\p{L}]++x|[a-z]?+z|\d*+a)",
                                  R"(a{2,3}|b{2}|(?:cd){1,2}e|x(?=\d)|\W)",
                                  R"(\w+|[\w]|[^\w\s])",
                                  R"([\w&&[^\p{Lu}\d]]+$|.)",
                                  R"('s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)",
                                  R"([[:punct:]]+|[[:^punct:][:punct:]&&\p{S}])",
                                  R"(x*)",
                                  R"((?:ab|a)(?:c|bcd)?)",
                                  R"((a|ab)(c|bcd)*)",
                                  R"(\n$|$)",
                                  R"([\]\-a-f^]+|[-x]|[x-])",
                                  R"((?:\s*\S)+)"};
  for (const GgufPre& pre : gguf_pres()) {
    for (const std::string_view pattern : pre.patterns) all.emplace_back(pattern);
  }
  return all;
}

TEST(AutomatonTest, MatchesAsTheLibrary) {
  const size_t characters = wanted_characters();
  const std::string every = every_character(characters >= 1'000'000 ? 1 : 97);
  uint64_t seed = 1;
  for (const std::string& pattern : patterns()) {
    const Regex regex(pattern, false, "test");
    if (!regex.has_table()) continue;
    for (const std::string& text : {RandomText(seed++).make(characters), every}) {
      const auto ours = regex.find_all(text), theirs = regex.find_all_by_library(text);
      const auto [a, b] = std::mismatch(ours.begin(), ours.end(), theirs.begin(), theirs.end());
      if (a == ours.end() && b == theirs.end()) continue;
      const size_t at = std::min(a == ours.end() ? text.size() : a->first,
                                 b == theirs.end() ? text.size() : b->first);
      ADD_FAILURE() << pattern << " differs at " << at << ": "
                    << testing::PrintToString(text.substr(at, 20));
    }
  }
}

// What the usual tokenizers cut by is not left to the library.
TEST(AutomatonTest, UsualPatternsHaveTables) {
  std::vector<std::string> without;
  for (const GgufPre& pre : gguf_pres()) {
    for (const std::string_view pattern : pre.patterns) {
      if (!Regex(std::string(pattern), false, "test").has_table()) without.emplace_back(pattern);
    }
  }
  EXPECT_THAT(without,
              testing::UnorderedElementsAre(R"(\d{1,3}(?=(?:\d{3})*\b))", R"((?=(\d{3})+(?!\d)))"));
}

// What is not regular, or means something else than it seems to.
TEST(AutomatonTest, OtherPatternsAreTheLibrarys) {
  for (const char* pattern :
       {"(a)\\1",      "a+?",    "(?:a*)*",   "(?:a+)++b", "(?<=a)b", "(?<!a)b",       "\\bx",
        "^a",          "a\\z",   "(?>a|ab)c", "(?i:ss)",   "(?i:st)", "(?i:\xC3\x9F)", "(?i:[a-z])",
        "(?i)a",       "a{2,1}", "a{,3}",     "a{2}+",     "\\h",     "\\R",           "\\X",
        "[[:alpha:]]", "[]a]",   "a{",        "(?=ab)c",   "(?!a+)c", "(?<n>a)",       "\\Ka",
        "[\\p{L}-x]",  "a**",    "\\'",       "(?x: a )",  "(?m:.)"}) {
    try {
      EXPECT_FALSE(Regex(pattern, false, "test").has_table()) << pattern;
    } catch (const std::exception&) {  // not a pattern to the library
    }
  }
}

TEST(AutomatonTest, LargeTablesAreNotMade) {
  EXPECT_FALSE(Regex("(?:a|b)*a(?:a|b){16}", false, "test").has_table());
  EXPECT_FALSE(Regex("(?:(?:(?:a{100}){100}){100}){100}", false, "test").has_table());
  EXPECT_TRUE(Regex("(?:a|b)*a(?:a|b){6}", false, "test").has_table());
}

}  // namespace
}  // namespace pronghorn
