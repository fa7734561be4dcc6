// What a message shows of names that somebody else chose.
#include "base/quote.h"

#include <gtest/gtest.h>

#include "base/warning.h"

namespace pronghorn {
namespace {

TEST(Quote, LeavesOrdinaryNamesAlone) {
  EXPECT_EQ(quote("layers.0.weight"), "'layers.0.weight'");
  EXPECT_EQ(quote(""), "''");
  EXPECT_EQ(quote("größe 大小 🦌"), "'größe 大小 🦌'");
}

TEST(Quote, EscapesWhatATerminalWouldObey) {
  EXPECT_EQ(quote("a\nb\r\tc"), R"('a\nb\r\tc')");
  EXPECT_EQ(quote("\x1b[2J\x07"), R"('\x1b[2J\x07')");
  EXPECT_EQ(quote(std::string_view("a\0b", 3)), R"('a\x00b')");
  EXPECT_EQ(quote("\xc2\x9b"
                  "31m"),
            R"('\x9b31m')");                              // C1: the same as ESC [
  EXPECT_EQ(quote("abc\u202egnp"), R"('abc\u202egnp')");  // text from right to left
  EXPECT_EQ(quote("line\u2028two"), R"('line\u2028two')");
}

TEST(Quote, EscapesBytesThatAreNotUtf8) {
  EXPECT_EQ(quote("a\xff"), R"('a\xff')");
  EXPECT_EQ(quote("\xe5\xa4"), R"('\xe5\xa4')");          // cut off
  EXPECT_EQ(quote("\xc0\xaf"), R"('\xc0\xaf')");          // overlong
  EXPECT_EQ(quote("\xed\xa0\x80"), R"('\xed\xa0\x80')");  // a surrogate
  EXPECT_EQ(quote("\xf5\x80\x80\x80"), R"('\xf5\x80\x80\x80')");
}

TEST(Quote, CutsBetweenCharacters) {
  EXPECT_EQ(quote("abcdef", 3), "'abc...'");
  EXPECT_EQ(quote("abc", 3), "'abc'");
  EXPECT_EQ(quote("ööö", 2), "'öö...'");
  EXPECT_EQ(quote(std::string(1 << 20, 'x')).size(), kQuoteLength + 5);
}

TEST(Warning, IsSaidOnce) {
  testing::internal::CaptureStderr();
  warn_once("file: odd\x1b[0m");
  warn_once("file: odd\x1b[0m");
  warn_once("file: other");
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "warning: file: odd\\x1b[0m\nwarning: file: other\n");
}

}  // namespace
}  // namespace pronghorn
