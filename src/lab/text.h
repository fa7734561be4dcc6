// Text of any origin made fit to show: UTF-8, widths on terminals, HTML, and short numbers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pronghorn::lab {

// Takes the first code point off a text that is not empty. Bytes that are not UTF-8 give U+FFFD,
// one for each byte that cannot begin or continue a code point.
char32_t take_code_point(std::string_view& rest);

// Terminal columns that a UTF-8 text takes: wide characters of East Asia and emoji count two,
// combining marks none.
size_t display_width(std::string_view text);

// The text as valid UTF-8 on one line: control characters, escapes included, become U+FFFD, so
// that a name from a file cannot drive the terminal.
std::string one_line(std::string_view text);

// The text as the content of an HTML element or quoted attribute: &, <, >, " and ' become
// references; bytes that are not UTF-8, and control characters other than tab and newline,
// become U+FFFD.
std::string html_escape(std::string_view text);

// JSON text (valid UTF-8) fit for a <script> element: <, > and & become \u escapes, so that no
// string in it can end the element or open a comment.
std::string script_escape(std::string_view json);

// "512", "4k", "256k", "1M": powers of 1024, as contexts are named.
std::string format_context(int64_t context);
// "3.1%", "42%" of a fraction.
std::string format_percent(double fraction);
// "99.2%" of an accuracy: the last tenths are what tells good ones apart.
std::string format_recall(double accuracy);
// "1.287" bits per byte.
std::string format_bits(double bits);

}  // namespace pronghorn::lab
