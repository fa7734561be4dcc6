// Strings of templates as Python has them: characters are code points, classes and cases Unicode's.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn::jinja {

std::vector<std::string_view> characters(std::string_view text);
int64_t character_count(std::string_view text);
// The character at a place from 0 to character_count() - 1.
std::string_view character_at(std::string_view text, int64_t place);
// True if there are characters, and all are wanted.
bool every_character(std::string_view text, bool (*wanted)(uint32_t));
// str.isupper() and str.islower(): letters with a case, all of this one.
bool is_cased(std::string_view text, bool upper);

bool is_space(uint32_t code);      // str.isspace()
bool is_printable(uint32_t code);  // str.isprintable()
bool is_letter(uint32_t code);     // str.isalpha()
bool is_digit(uint32_t code);      // str.isdecimal()
bool is_word(uint32_t code);       // \w of regular expressions
bool is_lower(uint32_t code);
bool is_upper(uint32_t code);

std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
// The first character upper case, the others lower.
std::string capitalized(std::string_view text);
// str.title(): each letter after something else than a letter upper case, the others lower.
std::string title_case(std::string_view text);
std::string swapped_case(std::string_view text);

// Offsets of the text without white space at its ends; at those ends that are wanted.
std::string_view strip(std::string_view text, bool left = true, bool right = true);
// Without any of the characters of `set` at its ends.
std::string_view strip(std::string_view text, std::string_view set, bool left, bool right);
// Pieces between runs of white space, at most `most` splits (below 0: all).
std::vector<std::string_view> split_at_space(std::string_view text, int64_t most, bool from_right);
// str.splitlines().
std::vector<std::string_view> lines_of(std::string_view text, bool keep_ends);
// Occurrences of `part` that replacing it would find, at most `most` (below 0: all).
int64_t count_of(std::string_view text, std::string_view part, int64_t most = -1);
std::string replace(std::string_view text, std::string_view from, std::string_view to,
                    int64_t most);
// chr(); throws Failure for what is no code point.
void append_character(int64_t code, std::string& out);
// & < > ' " as HTML writes them.
std::string escape_html(std::string_view text);

}  // namespace pronghorn::jinja
