#include "formats/automaton.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <unordered_map>

#include "formats/utf8.h"

namespace pronghorn {
namespace {

constexpr size_t kMostClasses = 250, kMostStates = 4096, kMostWork = 20'000'000;

// Which of the graph's sets a character is in.
using Membership = uint64_t;

}  // namespace

// A state is what a search that tries all ways at once has in hand: the nodes that it stands
// before, those that the library would try first first (Cox, "Regular expression matching in the
// wild", 2010). What a way finds makes those after it pointless.
class Automaton::Builder {
 public:
  explicit Builder(const PatternGraph& graph) : graph_(graph) {}

  bool run(Automaton& out) {
    if (!class_characters(out)) return false;
    out.classes_ = members_.size() + 1;
    state_of({});
    state_of({graph_.start});
    for (size_t state = 0; state < states_.size(); ++state) {
      for (size_t i = 0; i < out.classes_; ++i) {
        out.table_.push_back(step(*states_[state], i));
        if (states_.size() > kMostStates || work_ > kMostWork) return false;
      }
    }
    return true;
  }

 private:
  using Nodes = std::vector<uint16_t>;

  // Gives characters that are in the same sets the same class.
  bool class_characters(Automaton& out) {
    std::vector<uint32_t> cuts = {0};
    for (const CodeRanges& set : graph_.sets) {
      for (const CodeRange& range : set) {
        cuts.push_back(range.first);
        cuts.push_back(range.last + 1);
      }
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    if (cuts.back() <= kLastCode) cuts.push_back(kLastCode + 1);
    std::vector<Membership> members(cuts.size());
    for (size_t set = 0; set < graph_.sets.size(); ++set) {
      size_t i = 0;
      for (const CodeRange& range : graph_.sets[set]) {
        while (cuts[i] < range.first) ++i;
        for (; cuts[i] <= range.last; ++i) members[i] |= Membership{1} << set;
      }
    }
    std::map<Membership, uint8_t> known;
    std::string classes(size_t{kLastCode} + 1, '\0');
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      const auto [entry, added] = known.emplace(members[i], static_cast<uint8_t>(members_.size()));
      if (added) members_.push_back(members[i]);
      if (members_.size() > kMostClasses) return false;
      std::fill(classes.begin() + cuts[i], classes.begin() + cuts[i + 1],
                static_cast<char>(entry->second));
    }
    for (const StandIn& row : kStandIns) {
      std::fill(classes.begin() + row.first, classes.begin() + row.last + 1, classes[row.like]);
    }
    std::memcpy(out.ascii_.data(), classes.data(), out.ascii_.size());
    std::unordered_map<std::string_view, uint16_t> blocks;
    for (size_t at = 0; at < classes.size(); at += 256) {
      const std::string_view block = std::string_view(classes).substr(at, 256);
      const auto [entry, added] = blocks.emplace(block, static_cast<uint16_t>(out.blocks_.size()));
      if (added) std::memcpy(out.blocks_.emplace_back().data(), block.data(), block.size());
      out.index_.push_back(entry->second);
    }
    return true;
  }

  uint16_t state_of(Nodes nodes) {
    const auto [entry, added] =
        numbers_.emplace(std::move(nodes), static_cast<uint16_t>(states_.size()));
    if (added) states_.push_back(&entry->first);
    return entry->second;
  }

  // What a character of a class, or the end of the text, makes of a state.
  Entry step(const Nodes& from, size_t of_class) {
    const bool ends = of_class == members_.size();
    const auto in_set = [&](uint16_t set) { return !ends && (members_[of_class] >> set & 1) != 0; };
    seen_.assign(graph_.nodes.size(), false);
    taken_.assign(graph_.nodes.size(), false);
    Nodes next;
    for (const uint16_t first : from) {
      stack_.assign(1, first);
      while (!stack_.empty()) {
        const uint16_t at = stack_.back();
        stack_.pop_back();
        if (seen_[at]) continue;
        seen_[at] = true;
        ++work_;
        const PatternGraph::Node& node = graph_.nodes[at];
        switch (node.kind) {
          case PatternGraph::Kind::end:
            return state_of(std::move(next)) | kMatch;
          case PatternGraph::Kind::fork:
            stack_.push_back(node.other);
            stack_.push_back(node.next);
            break;
          case PatternGraph::Kind::before:
            if (in_set(node.set)) stack_.push_back(node.next);
            break;
          case PatternGraph::Kind::not_before:
            if (!in_set(node.set)) stack_.push_back(node.next);
            break;
          case PatternGraph::Kind::character:
            if (!in_set(node.set) || taken_[node.next]) break;
            taken_[node.next] = true;
            next.push_back(node.next);
            break;
        }
      }
    }
    return state_of(std::move(next));
  }

  const PatternGraph& graph_;
  std::vector<Membership> members_;  // of each class
  std::map<Nodes, uint16_t> numbers_;
  std::vector<const Nodes*> states_;
  std::vector<bool> seen_, taken_;
  Nodes stack_;
  size_t work_ = 0;
};

std::shared_ptr<const Automaton> Automaton::make(const PatternGraph& graph) {
  auto automaton = std::make_shared<Automaton>();
  if (!Builder(graph).run(*automaton)) return nullptr;
  return automaton;
}

size_t Automaton::match(std::string_view text, size_t at, size_t& budget) const {
  size_t end = text.npos, state = kStart;
  const size_t begin = at;
  while (state != 0) {
    size_t of_class = classes_ - 1, length = 1;
    if (at < text.size()) {
      const auto byte = static_cast<unsigned char>(text[at]);
      if (byte < 0x80) {
        of_class = ascii_[byte];
      } else {
        length = byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
        of_class = class_of(decode_utf8(text.substr(at, length)));
      }
    }
    const Entry entry = table_[state * classes_ + of_class];
    if ((entry & kMatch) != 0) end = at;
    state = at < text.size() ? entry & kState : 0;
    at += length;
  }
  budget -= std::min(budget, at - begin);
  return end;
}

bool Automaton::find_all(std::string_view text, size_t budget,
                         std::vector<std::pair<size_t, size_t>>& matches) const {
  const auto character = [&](size_t at) {
    return at < text.size() ? std::max<size_t>(utf8_character(text.substr(at, 4)), 1) : 1;
  };
  size_t last_end = text.npos;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = match(text, at, budget);
    if (budget == 0) return false;
    if (end == text.npos || (end == at && end == last_end)) {
      at += character(at);
      continue;
    }
    matches.emplace_back(at, end);
    at = last_end = end;
  }
  return true;
}

}  // namespace pronghorn
