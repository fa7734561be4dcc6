// Where a text can be cut into words that no merge joins, so that each is encoded once. For
// vocabularies that write spaces as U+2581.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace pronghorn {

class WordCuts {
 public:
  WordCuts() { alone_.fill(true); }
  // A piece that merges can make, or that stands from the start. All are added before finish().
  void add(std::string_view piece);
  // known: whether an ASCII character becomes a token by itself, whatever stands around it.
  template <typename Known>
  void finish(const Known& known) {
    sort();
    for (size_t c = 0; c < alone_.size(); ++c) {
      alone_[c] = c < 0x80 && alone_[c] && known(static_cast<char>(c));
    }
  }

  // Length of the first word, at least one character: up to a U+2581 after a character that no
  // piece has before one, or to a character (or after one) that is in no longer piece.
  size_t first(std::string_view text) const;

 private:
  void sort();

  std::array<bool, 256> alone_{};  // by byte: in no piece but its own
  std::vector<uint32_t> before_mark_;
};

}  // namespace pronghorn
