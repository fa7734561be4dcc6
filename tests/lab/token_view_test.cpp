#include "lab/token_view.h"

#include <gtest/gtest.h>

namespace pronghorn::lab {
namespace {

TokenView view() {
  TokenView result;
  result.title = "a <b>";
  result.facts = {"one & two"};
  result.legend = {{0, "nothing"}, {1, "all"}};
  result.tokens = {{"In ", 0, "n0"},
                   {"the\n", 1, "n1"},
                   {"\xc3", 0.2, "n2"},
                   {"\xa9", 0.6, "n3"},
                   {"\x1b[31m", 0.5, "\"quoted\""}};
  return result;
}

TEST(TokenView, TerminalColoursEndBeforeLineBreaks) {
  const std::string text = terminal_text(view(), true);
  EXPECT_EQ(text.find("In \x1b[48;5;202;38;5;16mthe\x1b[0m\n"), 0u) << text;
  EXPECT_NE(text.find(" nothing\n"), std::string::npos);
}

TEST(TokenView, NothingFromTheTextDrivesTheTerminal) {
  EXPECT_EQ(terminal_text(view(), true).find("\x1b[31m"), std::string::npos);
  EXPECT_EQ(terminal_text(view(), false).find('\x1b'), std::string::npos);
}

TEST(TokenView, WithoutColoursStrengthsAreDigits) {
  EXPECT_EQ(terminal_text(view(), false).find("In [0]the\n[9]"), 0u);
}

TEST(TokenView, TokensInsideACharacterAreJoined) {
  const std::string text = terminal_text(view(), false);
  EXPECT_NE(text.find("\xc3\xa9[5]"), std::string::npos) << text;  // the stronger of the two
  EXPECT_NE(html_page(view()).find("title=\"n2; n3\">\xc3\xa9<"), std::string::npos);
}

TEST(TokenView, PageEscapesWhatComesFromTexts) {
  const std::string page = html_page(view());
  EXPECT_NE(page.find("<title>a &lt;b&gt;</title>"), std::string::npos);
  EXPECT_NE(page.find("<p>one &amp; two</p>"), std::string::npos);
  EXPECT_EQ(page.find("title=\"\"quoted"), std::string::npos);
  EXPECT_EQ(page.find("{{"), std::string::npos);
}

}  // namespace
}  // namespace pronghorn::lab
