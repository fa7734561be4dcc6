// Regular expressions in the dialect of Oniguruma, as pre-tokenizers use them: by that library or,
// for patterns that need no going back, by a table that gives the same.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/automaton.h"

namespace pronghorn {

class Regex {
 public:
  // literal: the pattern is plain text. Throws Error(where) if it does not compile.
  Regex(const std::string& pattern, bool literal, const std::string& where);

  // All matches, as (begin, end), from left to right without overlap. A match may be empty, but
  // then it does not touch the end of the match before. text must be valid UTF-8. Classes of
  // characters are those of the reference (unicode.h). Throws Error if matching takes unreasonable
  // effort. Safe from several threads.
  using Matches = std::vector<std::pair<size_t, size_t>>;
  Matches find_all(std::string_view text) const;

  // The same by the library, also for a pattern that has a table: what that is tested against.
  Matches find_all_by_library(std::string_view text) const;
  bool has_table() const { return automaton_ != nullptr; }

 private:
  std::string where_, literal_;  // literal_: the plain text, if the pattern is one
  std::shared_ptr<void> code_;
  std::shared_ptr<const Automaton> automaton_;  // where the pattern is regular
};

}  // namespace pronghorn
