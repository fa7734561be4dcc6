#include "formats/trie.h"

#include <algorithm>

namespace pronghorn {

Trie::Trie(std::vector<std::pair<std::string_view, int32_t>> texts) {
  root_.fill(kNone);
  std::erase_if(texts, [](const auto& entry) { return entry.first.empty(); });
  std::stable_sort(texts.begin(), texts.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  // Level by level: each node has the texts [begin, end) that share its first `depth` bytes.
  struct Span {
    uint32_t node;
    size_t begin, end, depth;
  };
  std::vector<Span> level = {{kNone, 0, texts.size(), 0}}, next;
  while (!level.empty()) {
    next.clear();
    for (const Span& span : level) {
      const auto first = static_cast<uint32_t>(nodes_.size());
      for (size_t at = span.begin; at < span.end;) {
        const auto label = static_cast<unsigned char>(texts[at].first[span.depth]);
        size_t end = at;
        Node node;
        node.label = label;
        while (end < span.end &&
               static_cast<unsigned char>(texts[end].first[span.depth]) == label) {
          if (texts[end].first.size() == span.depth + 1) {
            node.number = texts[end].second;
            at = end + 1;  // shorter texts come first: the rest goes deeper
          }
          ++end;
        }
        const auto index = static_cast<uint32_t>(nodes_.size());
        if (span.node == kNone) root_[label] = index;
        nodes_.push_back(node);
        if (at < end) next.push_back({index, at, end, span.depth + 1});
        at = end;
      }
      if (span.node != kNone) {
        nodes_[span.node].children = first;
        nodes_[span.node].count = static_cast<uint16_t>(nodes_.size() - first);
      }
    }
    std::swap(level, next);
  }
}

}  // namespace pronghorn
