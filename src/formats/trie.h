// A set of texts, each with a number, for walking along another text.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace pronghorn {

class Trie {
 public:
  Trie() { root_.fill(kNone); }
  // Of texts that occur twice the last counts. Empty texts are omitted.
  explicit Trie(std::vector<std::pair<std::string_view, int32_t>> texts);

  bool empty() const { return nodes_.empty(); }

  // Whether a text begins with this byte.
  bool may_begin(unsigned char byte) const { return root_[byte] != kNone; }

  // Calls take(length, number) for each text that `text` begins with, shortest first.
  template <typename Take>
  void for_each_prefix(std::string_view text, const Take& take) const {
    uint32_t node = text.empty() ? kNone : root_[static_cast<unsigned char>(text[0])];
    for (size_t length = 1; node != kNone; ++length) {
      if (nodes_[node].number >= 0) take(length, nodes_[node].number);
      if (length == text.size()) return;
      node = child(node, static_cast<unsigned char>(text[length]));
    }
  }

  // The longest text that `text` begins with: its length (0: none) and number.
  std::pair<size_t, int32_t> longest_prefix(std::string_view text) const {
    std::pair<size_t, int32_t> longest = {0, -1};
    for_each_prefix(text, [&](size_t length, int32_t number) { longest = {length, number}; });
    return longest;
  }

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};
  struct Node {
    uint32_t children = 0;  // the first of them
    int32_t number = -1;
    uint16_t count = 0;
    uint8_t label = 0;
  };

  uint32_t child(uint32_t node, unsigned char label) const {
    uint32_t low = nodes_[node].children, high = low + nodes_[node].count;
    while (low < high) {
      const uint32_t middle = (low + high) / 2;
      if (nodes_[middle].label < label) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    const bool found = low < nodes_[node].children + nodes_[node].count;
    return found && nodes_[low].label == label ? low : kNone;
  }

  std::array<uint32_t, 256> root_{};
  std::vector<Node> nodes_;  // children of one node together, sorted by label
};

}  // namespace pronghorn
