// Text of unknown origin in messages: on one line, without control over the terminal, and short.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace pronghorn {

// Characters of a name that a message shows.
constexpr size_t kQuoteLength = 100;

// 'name' for a message. Control characters, marks that change the direction of writing and bytes
// that are not UTF-8 are escaped (\n, \x1b, \u202e); a name of more than `limit` characters is cut
// and ends in "...".
std::string quote(std::string_view name, size_t limit = kQuoteLength);

// The same without the quotes: a whole message on its way to a terminal.
std::string printable(std::string_view text, size_t limit);

}  // namespace pronghorn
