#include "decode/suffix_automaton.h"

namespace pronghorn {
namespace {

// Between texts; never followed, since tokens are not negative.
constexpr int32_t kSeparator = -1;

uint64_t key(int32_t state, int32_t token) {
  return static_cast<uint64_t>(static_cast<uint32_t>(state)) << 32 | static_cast<uint32_t>(token);
}

}  // namespace

SuffixAutomaton::SuffixAutomaton() : states_(1) {}

int32_t SuffixAutomaton::target(int32_t state, int32_t token) const {
  const auto found = index_.find(key(state, token));
  return found == index_.end() ? -1 : edges_[static_cast<size_t>(found->second)].target;
}

void SuffixAutomaton::set_edge(int32_t state, int32_t token, int32_t target) {
  const auto [place, added] =
      index_.try_emplace(key(state, token), static_cast<int32_t>(edges_.size()));
  if (!added) {
    edges_[static_cast<size_t>(place->second)].target = target;
    return;
  }
  State& owner = states_[static_cast<size_t>(state)];
  edges_.push_back({token, target, owner.first_edge});
  owner.first_edge = place->second;
}

void SuffixAutomaton::append(int32_t token) {
  tokens_.push_back(token);
  const auto added = static_cast<int32_t>(states_.size());
  states_.push_back({states_[static_cast<size_t>(last_)].length + 1, 0, -1, tokens_.size()});
  int32_t state = last_;
  for (; state >= 0 && target(state, token) < 0; state = states_[static_cast<size_t>(state)].link) {
    set_edge(state, token, added);
  }
  if (state >= 0) {
    const int32_t next = target(state, token);
    const int64_t length = states_[static_cast<size_t>(state)].length + 1;
    if (states_[static_cast<size_t>(next)].length == length) {
      states_[static_cast<size_t>(added)].link = next;
    } else {
      // Of the parts of `next`, those of this length and shorter now occur at one more place.
      const auto split = static_cast<int32_t>(states_.size());
      const State old = states_[static_cast<size_t>(next)];
      states_.push_back({length, old.link, -1, old.end});
      for (int32_t edge = old.first_edge; edge >= 0;) {
        const Edge copy = edges_[static_cast<size_t>(edge)];
        set_edge(split, copy.token, copy.target);
        edge = copy.next;
      }
      for (; state >= 0 && target(state, token) == next;
           state = states_[static_cast<size_t>(state)].link) {
        set_edge(state, token, split);
      }
      states_[static_cast<size_t>(next)].link = states_[static_cast<size_t>(added)].link = split;
    }
  }
  last_ = added;

  State& again = states_[static_cast<size_t>(states_[static_cast<size_t>(added)].link)];
  repeated_ = {again.length, again.end};
  // Only this one is told of its newest place: telling all shorter ends would take linear time.
  if (again.length > 0) again.end = tokens_.size();
}

void SuffixAutomaton::separate() {
  tokens_.push_back(kSeparator);
  last_ = 0;  // what follows begins a part of its own
  repeated_ = {};
}

void SuffixAutomaton::follow(Cursor& cursor, int32_t token) const {
  // The state may have been split since: its shorter parts then belong to its link.
  const auto at = [this](int32_t state) -> const State& {
    return states_[static_cast<size_t>(state)];
  };
  while (at(cursor.state).link >= 0 && cursor.length <= at(at(cursor.state).link).length) {
    cursor.state = at(cursor.state).link;
  }
  while (cursor.state >= 0 && target(cursor.state, token) < 0) {
    cursor.state = at(cursor.state).link;
    if (cursor.state >= 0) cursor.length = at(cursor.state).length;
  }
  if (cursor.state < 0) {
    cursor = {};
    return;
  }
  cursor.state = target(cursor.state, token);
  ++cursor.length;
}

SuffixAutomaton::Match SuffixAutomaton::match(const Cursor& cursor) const {
  if (cursor.length == 0) return {};
  return {cursor.length, states_[static_cast<size_t>(cursor.state)].end};
}

}  // namespace pronghorn
