// Classes, case and normalisation of the reference library, where they differ from what one would
// think. The whole tables are compared by scripts/make_unicode_tables.py.
#include "formats/unicode.h"

#include <gtest/gtest.h>

#include "formats/decoder.h"

namespace pronghorn {
namespace {

TEST(UnicodeTest, Classes) {
  for (const uint32_t code : {0x20u, 0x0Au, 0x85u, 0xA0u, 0x1680u, 0x2003u, 0x2028u, 0x3000u}) {
    EXPECT_TRUE(is_unicode_space(code)) << code;
  }
  for (const uint32_t code : {0x180Eu, 0x200Bu, 0xFEFFu, 0x41u}) {
    EXPECT_FALSE(is_unicode_space(code)) << code;
  }
  EXPECT_TRUE(is_word_character('_'));
  EXPECT_TRUE(is_word_character(0x200D));  // joiners belong to words, superscripts do not
  EXPECT_FALSE(is_word_character(0xB2));
  EXPECT_TRUE(is_numeric(0xB2) && is_numeric(0xBD) && is_numeric(0x0E50) && is_numeric(0x3007));
  EXPECT_FALSE(is_numeric(0x4E00));
  EXPECT_TRUE(is_punctuation('$') && is_punctuation(0x3001) && is_punctuation(0xBF));
  EXPECT_FALSE(is_punctuation(0x20AC));
  EXPECT_TRUE(is_cjk(0x4E00) && is_cjk(0x3400) && !is_cjk(0x3042) && !is_cjk(0x2B820));
  EXPECT_TRUE(is_combining_mark(0x0903) && !is_nonspacing_mark(0x0903));
  EXPECT_TRUE(is_nonspacing_mark(0x0301));
  EXPECT_FALSE(is_unicode_space(0x110000));
}

TEST(UnicodeTest, LowerCase) {
  EXPECT_EQ(lower_case("ABC xyz \xC3\x84\xCE\xA9\xE1\xBA\x9E"), "abc xyz \xC3\xA4\xCF\x89\xC3\x9F");
  EXPECT_EQ(lower_case("\xC4\xB0"), "i\xCC\x87");  // I with a dot
  EXPECT_EQ(lower_case("\xCE\xA3"), "\xCF\x83");   // no final sigma: each letter by itself
  EXPECT_EQ(lower_case("\xC4\x80\xC4\x81\xC4\x82"), "\xC4\x81\xC4\x81\xC4\x83");
}

TEST(UnicodeTest, NormalForms) {
  EXPECT_EQ(normalize("e\xCC\x81", NormalForm::nfc), "\xC3\xA9");
  EXPECT_EQ(normalize("\xC3\xA9", NormalForm::nfd), "e\xCC\x81");
  EXPECT_EQ(normalize("\xEF\xAC\x81\xEF\xBC\xA1\xC2\xBD", NormalForm::nfkc),
            "fiA1\xE2\x81\x84"
            "2");
  EXPECT_EQ(normalize("\xED\x95\x9C", NormalForm::nfd), "\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB");
  EXPECT_EQ(normalize("\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", NormalForm::nfc), "\xED\x95\x9C");
  // Marks in the order of their classes, around a letter without any.
  EXPECT_EQ(normalize("a\xCC\x81\xCC\xA3", NormalForm::nfd), "a\xCC\xA3\xCC\x81");
  EXPECT_EQ(normalize(std::string_view("\0e\xCC\x81", 4), NormalForm::nfc),
            std::string_view("\0\xC3\xA9", 3));
  // The reference's tables are older than this mark (U+1ABF, class 220) and keep it where it is.
  EXPECT_EQ(normalize("a\xCC\x81\xE1\xAA\xBF", NormalForm::nfd), "a\xCC\x81\xE1\xAA\xBF");
  EXPECT_EQ(normalize("\xE3\x8B\xBF", NormalForm::nfkc), "\xE3\x8B\xBF");  // the era Reiwa
  EXPECT_EQ(normalize("plain", NormalForm::nfkd), "plain");
}

TEST(UnicodeTest, Graphemes) {
  EXPECT_EQ(grapheme_length("\r\nx"), 2u);
  EXPECT_EQ(grapheme_length("e\xCC\x81x"), 3u);
  EXPECT_EQ(grapheme_length("ab"), 1u);
  EXPECT_EQ(grapheme_length(""), 0u);
}

TEST(UnicodeTest, InvalidBytesBecomeReplacementCharacters) {
  EXPECT_EQ(replace_invalid_utf8("a\xFFz"), "a\xEF\xBF\xBDz");
  // One for the longest beginning of a character.
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\xA6"), "\xEF\xBF\xBD");
  EXPECT_EQ(replace_invalid_utf8("\xE4\xBD"
                                 "a"),
            "\xEF\xBF\xBD"
            "a");
  EXPECT_EQ(replace_invalid_utf8("\xC0\xAF"), "\xEF\xBF\xBD\xEF\xBF\xBD");
}

}  // namespace
}  // namespace pronghorn
