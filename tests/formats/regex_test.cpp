// The dialect of Oniguruma, with the classes of the reference's version of it, and hostile
// patterns.
#include "formats/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "support/errors.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::error_of;

std::vector<std::string> matches(const std::string& pattern, const std::string& text) {
  std::vector<std::string> found;
  for (const auto& [begin, end] : Regex(pattern, false, "test").find_all(text)) {
    found.push_back(text.substr(begin, end - begin));
  }
  return found;
}
using Texts = std::vector<std::string>;

TEST(RegexTest, Dialect) {
  EXPECT_EQ(matches("[a-z&&[^aeiou]]+", "hello"), (Texts{"h", "ll"}));
  EXPECT_EQ(matches("(?i:'S)", "'s 'S '\xC5\xBF"), (Texts{"'s", "'S", "'\xC5\xBF"}));
  EXPECT_EQ(matches("a++b|a", "aab aaa"), (Texts{"aab", "a", "a", "a"}));
  EXPECT_EQ(matches(R"(\p{Han}+)", "x\xE4\xBD\xA0\xE5\xA5\xBDy\xE3\x81\x82"),
            (Texts{"\xE4\xBD\xA0\xE5\xA5\xBD"}));
  EXPECT_EQ(matches(R"(\x{4E00}|\h)", "a\xE4\xB8\x80z"), (Texts{"a", "\xE4\xB8\x80"}));
  EXPECT_EQ(matches(R"(\s+(?!\S)|\s+)", "a   b "), (Texts{"  ", " ", " "}));
}

TEST(RegexTest, ClassesAreTheReferences) {
  // Letters that are newer than Unicode 14: Garay, Cyrillic, a Han ideograph of extension I.
  EXPECT_EQ(matches(R"(\p{L})", "\xF0\x90\xB5\x90\xE1\xB2\x8A\xF0\xAE\xAF\xB0x").size(), 4u);
  EXPECT_EQ(matches(R"(\p{Lu})", "\xE1\xB2\x89\xE1\xB2\x8A").size(), 1u);
  EXPECT_EQ(matches(R"(\p{Han})", "\xF0\xAE\xAF\xB0").size(), 1u);
  EXPECT_EQ(matches(R"(\s)", "\xE1\xA0\x8E \xC2\x85\xE3\x80\x80").size(), 3u);  // not U+180E
  EXPECT_EQ(matches("[[:punct:]]", "a~`b$!\xE2\x82\xAC").size(), 5u);
  EXPECT_EQ(matches(R"(\p{punct})", "a~`b$!\xE2\x82\xAC").size(), 1u);
  EXPECT_EQ(matches("[[:^punct:]]", "a~b").size(), 2u);
  EXPECT_EQ(matches("[[:alpha:][:punct:]]+", "1a~2"), (Texts{"a~"}));
  EXPECT_EQ(matches(R"(\[:punct:\])", "[:punct:]"), (Texts{"[:punct:]"}));
  EXPECT_EQ(matches("[]a[:punct:]]+", "x]a~x"), (Texts{"]a~"}));
}

TEST(RegexTest, EmptyMatches) {
  // None at the end of the match before.
  const Regex pattern("x*", false, "test");
  using Places = std::vector<std::pair<size_t, size_t>>;
  EXPECT_EQ(pattern.find_all("axxb"), (Places{{0, 0}, {1, 3}, {4, 4}}));
  EXPECT_EQ(Regex("(?=b)", false, "test").find_all("abb"), (Places{{1, 1}, {2, 2}}));
  EXPECT_EQ(Regex("", false, "test").find_all("\xC3\xA9"), (Places{{0, 0}, {2, 2}}));
}

TEST(RegexTest, Literal) {
  EXPECT_EQ(Regex("a.", true, "test").find_all("aba.a.").size(), 2u);
  EXPECT_EQ(Regex("", true, "test").find_all("ab").size(), 0u);
}

TEST(RegexTest, HostilePatterns) {
  EXPECT_THAT(error_of([] { Regex("(", false, "file"); }), HasSubstr("file: pattern '('"));
  EXPECT_THAT(error_of([] { Regex("a\nb[", false, "file"); }), HasSubstr("a\\nb["));
  EXPECT_THAT(error_of([] { Regex("\xFF", false, "file"); }), HasSubstr("not UTF-8"));
  EXPECT_THROW(Regex(std::string(100'000, 'a'), false, "file"), Error);
  EXPECT_THROW(Regex(std::string(10'000, '(') + "a" + std::string(10'000, ')'), false, "file"),
               Error);
  // Exponential effort ends in an error, in bounded time.
  const Regex exponential("(?<x>a+)+$", false, "file");
  EXPECT_FALSE(exponential.has_table());
  EXPECT_THAT(error_of([&] { exponential.find_all(std::string(40, 'a') + "b"); }),
              HasSubstr("takes too long"));
  EXPECT_EQ(Regex("(a+)+$", false, "file").find_all(std::string(40, 'a') + "b").size(), 0u);
  // So does quadratic effort.
  EXPECT_THAT(
      error_of([] { Regex(R"(\s+$)", false, "file").find_all(std::string(100'000, ' ') + "x"); }),
      HasSubstr("takes too long"));
  // Published patterns are linear.
  const Regex gpt2(R"( ?\p{L}+| ?[^\s\p{L}]+|\s+(?!\S)|\s+)", false, "file");
  EXPECT_EQ(gpt2.find_all(std::string(1'000'000, ' ') + "x").size(), 2u);
  EXPECT_EQ(gpt2.find_all(std::string(1'000'000, 'x')).size(), 1u);
}

}  // namespace
}  // namespace pronghorn
