// Regular expressions with Unicode classes (PCRE2), as pre-tokenizers use them.
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

  // All matches, as (begin, end), that are not empty, from left to right without overlap. text must
  // be valid UTF-8. Throws Error if matching takes unreasonable effort. Safe from several threads.
  std::vector<std::pair<size_t, size_t>> find_all(std::string_view text) const;

 private:
  std::string where_;
  std::shared_ptr<void> code_;
};

}  // namespace pronghorn
