// Regular expressions in the dialect of Oniguruma, by that library, as pre-tokenizers use them.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pronghorn {

class Regex {
 public:
  // literal: the pattern is plain text. Throws Error(where) if it does not compile.
  Regex(const std::string& pattern, bool literal, const std::string& where);

  // All matches, as (begin, end), from left to right without overlap. A match may be empty, but
  // then it does not touch the end of the match before. text must be valid UTF-8. Classes of
  // characters are those of the reference (unicode.h). Throws Error if matching takes unreasonable
  // effort. Safe from several threads.
  std::vector<std::pair<size_t, size_t>> find_all(std::string_view text) const;

 private:
  std::string where_, literal_;  // literal_: the plain text, if the pattern is one
  std::shared_ptr<void> code_;
};

}  // namespace pronghorn
