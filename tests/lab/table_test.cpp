#include "lab/table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <sstream>

#include "base/error.h"
#include "lab/fake_run.h"
#include "lab/text.h"

namespace pronghorn::lab {
namespace {

using testing::HasSubstr;
using testing::Not;

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

Table small_table() {
  Table table({{"name", Align::kLeft},
               {"loss", Align::kRight, Best::kLowest},
               {"speed", Align::kRight, Best::kHighest},
               {"note"}});
  table.add_row({"alpha", {"1.50", 1.5}, {"9", 9}, "x"});
  table.add_row({"b", {"12.25", 12.25}, {"1000", 1000}, Cell()});
  table.add_row({"gamma ray", Cell(), {"7", 7}, "yes"});
  return table;
}

TEST(Table, AlignsAndMarksTheBest) {
  EXPECT_EQ(small_table().text(),
            "name        loss   speed   note\n"
            "-------------------------------\n"
            "alpha       1.50*      9      x\n"
            "b          12.25    1000*     -\n"
            "gamma ray      -       7    yes\n");
}

TEST(Table, IsWrittenAsMarkdown) {
  Table table = small_table();
  table.add_row({"a|b *c*\n", Cell(), {"8", 8}, Cell()});
  EXPECT_EQ(table.markdown(),
            "| name | loss | speed | note |\n"
            "|---|---:|---:|---:|\n"
            "| alpha | **1.50** | 9 | x |\n"
            "| b | 12.25 | **1000** | - |\n"
            "| gamma ray | - | 7 | yes |\n"
            "| a\\|b \\*c\\*\xEF\xBF\xBD | - | 8 | - |\n");
}

TEST(Table, BoldGoesAroundTheBestOnly) {
  const std::string text = small_table().text(true);
  EXPECT_THAT(text, HasSubstr("\x1b[1m1.50*\x1b[0m"));
  EXPECT_THAT(text, HasSubstr("\x1b[1m1000*\x1b[0m"));
  EXPECT_THAT(text, Not(HasSubstr("\x1b[1m12.25")));
}

TEST(Table, TiesThatReadTheSameAreAllBest) {
  Table table({{"name", Align::kLeft}, {"v", Align::kRight, Best::kHighest}});
  table.add_row({"a", {"1.00", 1.001}});
  table.add_row({"b", {"1.00", 1.002}});
  table.add_row({"c", {"0.50", 0.5}});
  EXPECT_TRUE(table.is_best(0, 1));
  EXPECT_TRUE(table.is_best(1, 1));
  EXPECT_FALSE(table.is_best(2, 1));
}

TEST(Table, WhatIsWithinTheMarginOfTheBestIsAsGood) {
  Table table({{"name", Align::kLeft}, {"v", Align::kRight, Best::kLowest, {}, 0.01}});
  table.add_row({"a", {"1.000", 1.0}});
  table.add_row({"b", {"1.009", 1.009}});
  EXPECT_FALSE(table.has_best());  // nobody is worse
  table.add_row({"c", {"1.011", 1.011}});
  EXPECT_TRUE(table.is_best(0, 1));
  EXPECT_TRUE(table.is_best(1, 1));
  EXPECT_FALSE(table.is_best(2, 1));
  EXPECT_TRUE(table.has_best());
}

TEST(Table, NothingIsBestWithoutAContest) {
  Table table({{"name", Align::kLeft}, {"v", Align::kRight, Best::kHighest}});
  table.add_row({"a", {"1", 1}});
  table.add_row({"b", Cell()});
  EXPECT_FALSE(table.is_best(0, 1));
  EXPECT_FALSE(table.is_best(1, 1));
  table.add_row({"c", {"1", 1}});
  EXPECT_FALSE(table.is_best(0, 1));
}

TEST(Table, GroupsSpanTheirColumns) {
  Table table({{"n", Align::kLeft},
               {"1", Align::kRight, Best::kNone, "speed"},
               {"2", Align::kRight, Best::kNone, "speed"},
               {"x"}});
  table.add_row({"a", "1000", "20000", "3"});
  EXPECT_EQ(table.text(),
            "   -- speed --\n"
            "n     1      2  x\n"
            "-----------------\n"
            "a  1000  20000  3\n");
}

TEST(Table, WideTablesBreakAndRepeatTheFirstColumn) {
  const Table table = small_table();
  const std::string text = table.text(false, 20);
  EXPECT_GT(table.width(), 20u);
  size_t headings = 0;
  for (const std::string& line : lines_of(text)) {
    EXPECT_LE(display_width(line), 20u) << line;
    if (line.starts_with("name")) ++headings;
  }
  EXPECT_EQ(headings, 3u);
  EXPECT_THAT(text, HasSubstr("speed"));
  EXPECT_THAT(text, HasSubstr("note"));
}

TEST(Table, WidthCountsCharactersNotBytes) {
  EXPECT_EQ(display_width("abc"), 3u);
  EXPECT_EQ(display_width("5×–★"), 4u);
  EXPECT_EQ(display_width("日本"), 4u);
  EXPECT_EQ(display_width("e\xCC\x81"), 1u);
  EXPECT_EQ(display_width("\xFF\xC3"), 2u);
  Table table({{"n", Align::kLeft}, {"v"}});
  table.add_row({"é×", "1"});
  table.add_row({"ab", "2"});
  const std::vector<std::string> lines = lines_of(table.text());
  EXPECT_EQ(lines[2], "é×  1");
  EXPECT_EQ(lines[3], "ab  2");
}

TEST(Table, NamesCannotDriveTheTerminal) {
  Table table({{"n", Align::kLeft}, {"v"}});
  table.add_row({"\x1b[2Jevil\n\x07", "1"});
  const std::string text = table.text();
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
  EXPECT_EQ(lines_of(text).size(), 3u);
}

TEST(Table, RowsMustFit) {
  Table table({{"n"}, {"v"}});
  EXPECT_THROW(table.add_row({"only one"}), Error);
}

TEST(Table, NumberCellsThatAreNotNumbersAreMissing) {
  const auto format = [](double) { return std::string("shown"); };
  EXPECT_EQ(number_cell({}, format).text, "-");
  EXPECT_EQ(number_cell(std::numeric_limits<double>::quiet_NaN(), format).text, "-");
  EXPECT_EQ(number_cell(1.0, format).text, "shown");
}

TEST(Table, ContextsAreNamedInPowersOfTwo) {
  EXPECT_EQ(format_context(512), "512");
  EXPECT_EQ(format_context(4096), "4k");
  EXPECT_EQ(format_context(262144), "256k");
  EXPECT_EQ(format_context(1 << 20), "1M");
  EXPECT_EQ(format_context(1000), "1000");
}

TEST(CompareTable, FitsInTheTerminal) {
  const std::string text = compare_table(fake_run());
  for (const std::string& line : lines_of(text)) EXPECT_LE(display_width(line), 120u) << line;
  for (const char* part : {"transformer", "held-out bits/byte", "% of peak", " training ", "memory",
                           "MQAR recall", "prompt tokens/s", "decode tokens/s", "state", "256k",
                           "gzip -9 on the same held-out text: 2.634 bits/byte"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  // Three stacked tables of five rows.
  size_t rows = 0;
  for (const std::string& line : lines_of(text)) rows += line.starts_with("gated-deltanet");
  EXPECT_EQ(rows, 3u);
}

TEST(CompareTable, OneTableWhereThereIsRoom) {
  const std::string text = compare_table(fake_run(), false, 400);
  size_t rows = 0;
  for (const std::string& line : lines_of(text)) rows += line.starts_with("gated-deltanet");
  EXPECT_EQ(rows, 1u);
}

TEST(CompareTable, FailedArchitecturesAreShown) {
  CompareRun run = fake_run();
  ArchitectureResult failed;
  failed.name = "broken";
  failed.failure = "loss is not a number at step 12";
  run.architectures.push_back(failed);
  const std::string text = compare_table(run);
  EXPECT_THAT(text, HasSubstr("broken (failed)"));
  EXPECT_THAT(text, HasSubstr("broken failed: loss is not a number at step 12"));
}

TEST(CompareTable, MarkdownHasMachineTablesAndNotes) {
  const std::string text = compare_markdown(fake_run());
  EXPECT_TRUE(
      text.starts_with("2026-11-21 · Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz, 4 "
                       "threads · Five architectures on children's stories"))
      << text;
  for (const char* part :
       {"**Quality and training**", "| architecture | parameters | held-out bits/byte |",
        "decode tokens/s 256k", "Bold: best of its column",
        "\n\ngzip -9 on the same held-out text: 2.634 bits/byte\n"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
}

TEST(CompareTable, EmptyRun) {
  EXPECT_THAT(compare_table(CompareRun{}), HasSubstr("architecture"));
}

}  // namespace
}  // namespace pronghorn::lab
