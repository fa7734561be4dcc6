// Texts line by line.
#pragma once

#include <algorithm>
#include <string_view>

namespace pronghorn {

// The first line of a text that is not empty, without its end ("\n" or "\r\n"); `text` becomes what
// comes after it.
inline std::string_view take_line(std::string_view& text) {
  const size_t end = std::min(text.find('\n'), text.size());
  std::string_view line = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

}  // namespace pronghorn
