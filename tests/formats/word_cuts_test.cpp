// Words that no merge joins.
#include "formats/word_cuts.h"

#include <gtest/gtest.h>

#include <string>

namespace pronghorn {
namespace {

std::vector<std::string> words_of(const WordCuts& cuts, std::string_view text) {
  std::vector<std::string> words;
  while (!text.empty()) {
    words.emplace_back(text.substr(0, cuts.first(text)));
    text.remove_prefix(words.back().size());
  }
  return words;
}

TEST(WordCutsTest, CutsWhereNoPieceGoesOn) {
  WordCuts cuts;
  for (const char* piece : {"▁the", "he", "▁▁", ".▁", "é!", "\n", "7", "▁"}) cuts.add(piece);
  cuts.finish([](char c) { return c != '?'; });
  using Words = std::vector<std::string>;
  // A mark begins a word, but after another one and after a full stop.
  EXPECT_EQ(words_of(cuts, "▁the▁the.▁the▁▁he"), (Words{"▁the", "▁the.▁the", "▁▁he"}));
  // No piece joins a line end or a digit with anything; "?" is no token, and may be part of a run.
  EXPECT_EQ(words_of(cuts, "he\n\n77he??he!é!"), (Words{"he", "\n", "\n", "7", "7", "he??he!é!"}));
  EXPECT_EQ(words_of(cuts, "▁é▁"), (Words{"▁é", "▁"}));
  EXPECT_EQ(words_of(cuts, "x"), (Words{"x"}));
}

}  // namespace
}  // namespace pronghorn
