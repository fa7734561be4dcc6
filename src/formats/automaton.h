// Matching of regular patterns by a table: one look-up for each character of a text.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/pattern.h"

namespace pronghorn {

class Automaton {
 public:
  // Null if the table would be large. Characters that the reference classes otherwise than the
  // library (stand_in_characters of unicode.h) are classed as the reference does.
  static std::shared_ptr<const Automaton> make(const PatternGraph& graph);

  // Adds what Regex::find_all returns to `matches`. False, with matches half done, if that takes
  // more than `budget` look-ups.
  bool find_all(std::string_view text, size_t budget,
                std::vector<std::pair<size_t, size_t>>& matches) const;

 private:
  // A place of the table: the next state, and whether the text so far, without the character that
  // is looked at, is a match. State 0 goes nowhere.
  using Entry = uint16_t;
  static constexpr Entry kMatch = 0x8000, kState = 0x7FFF;
  static constexpr uint16_t kStart = 1;

  class Builder;

  uint8_t class_of(uint32_t code) const { return blocks_[index_[code >> 8]][code & 0xFF]; }
  // Where the match that begins at `at` ends, or npos. Look-ups are taken from the budget.
  size_t match(std::string_view text, size_t at, size_t& budget) const;

  std::vector<Entry> table_;  // by state, then class of character; the last class is the end
  size_t classes_ = 0;        // with the end
  std::array<uint8_t, 128> ascii_{};
  std::vector<uint16_t> index_;  // classes of characters, in blocks of 256
  std::vector<std::array<uint8_t, 256>> blocks_;
};

}  // namespace pronghorn
