#include "grammar/pushdown.h"

#include <xxhash.h>

#include <algorithm>
#include <map>
#include <set>
#include <unordered_set>

#include "base/error.h"

namespace pronghorn {
namespace {

constexpr int64_t kWorkAtFirst = int64_t{1} << 22;
constexpr size_t kMapBytes = 64;  // of an entry of an index, beside its key

void sort_unique(std::vector<int32_t>& values) {
  std::ranges::sort(values);
  values.erase(std::unique(values.begin(), values.end()), values.end());
}

}  // namespace

// From places reached by a byte to those that take the next one.
//
// First all ways that were under way go on, within their rules and by returning. Then the rules
// that are called are entered, callers before what they begin with: when a rule is entered, all
// that called it here is known, and one node stands for each place in it.
class Pushdown::Closure {
 public:
  explicit Closure(Pushdown& machine) : machine_(machine), grammar_(machine.grammar_) {}

  void reach(int32_t place, Node behind) {
    const uint64_t key = static_cast<uint64_t>(place) << 32 | static_cast<uint32_t>(behind);
    if (seen_.insert(key).second) work_.emplace_back(place, behind);
  }

  // The rule is called, and returns to `behind`.
  void enter(int32_t rule, Node behind) {
    callers_[{grammar_.rule(rule).rank, rule}].push_back(behind);
  }

  // What follows after the call that `node` stands for has returned.
  void return_to(Node node) {
    if (node == kBottom) data_.complete = true;
    if (node == kOutside) data_.outside = true;
    if (node == kBottom || node == kOutside) return;
    const Frame frame = machine_.frame(node);
    const Grammar::Place& at = grammar_.place(frame.place);
    const std::span<const Node> behind = machine_.behind(node);
    machine_.work(std::ssize(behind));
    for (const Node caller : behind) {
      if (at.kind == Grammar::Place::Kind::call || frame.least == 0) reach(at.next[0], caller);
      if (at.kind == Grammar::Place::Kind::repeat && frame.most > 0) {
        calls_[next_turn(frame)].push_back(caller);
      }
    }
  }

  State finish() {
    while (!work_.empty()) {
      const auto [place, behind] = work_.back();
      work_.pop_back();
      machine_.work(1);
      visit(place, behind);
    }
    enter_rules();
    for (auto& [place, behind] : ends_) {
      sort_unique(behind);
      data_.nodes.push_back(machine_.node({place, 0, 0}, std::move(behind)));
    }
    std::ranges::sort(data_.nodes);
    return machine_.intern(std::move(data_));
  }

 private:
  static Frame next_turn(const Frame& frame) {
    return {frame.place, frame.least > 0 ? frame.least - 1 : 0,
            frame.most == Grammar::kUnlimited ? frame.most : frame.most - 1};
  }

  Frame first_turn(int32_t place) const {
    const Grammar::Place& at = grammar_.place(place);
    if (at.kind == Grammar::Place::Kind::call) return {place, 0, 0};
    return next_turn({place, at.least, at.most});
  }

  void visit(int32_t place, Node behind) {
    const Grammar::Place& at = grammar_.place(place);
    switch (at.kind) {
      case Grammar::Place::Kind::bytes:
        ends_[place].push_back(behind);
        return;
      case Grammar::Place::Kind::split:
        for (const int32_t next : at.next) reach(next, behind);
        return;
      case Grammar::Place::Kind::call:
        if (grammar_.rule(at.rule).nullable) reach(at.next[0], behind);
        calls_[first_turn(place)].push_back(behind);
        return;
      case Grammar::Place::Kind::repeat:
        if (at.least == 0) reach(at.next[0], behind);
        calls_[first_turn(place)].push_back(behind);
        return;
      case Grammar::Place::Kind::returns:
        return_to(behind);
        return;
    }
  }

  void call(const Frame& frame, std::vector<Node> behind) {
    sort_unique(behind);
    const Grammar::Place& at = grammar_.place(frame.place);
    // Who calls at the end of a rule does not come back to it.
    const bool last = at.kind == Grammar::Place::Kind::call &&
                      grammar_.place(at.next[0]).kind == Grammar::Place::Kind::returns;
    std::vector<Node>& callers = callers_[{grammar_.rule(at.rule).rank, at.rule}];
    if (last) {
      callers.insert(callers.end(), behind.begin(), behind.end());
    } else {
      callers.push_back(machine_.node(frame, std::move(behind)));
    }
  }

  void enter_rules() {
    std::map<Frame, std::vector<Node>> held;
    for (auto& [frame, behind] : calls_) {
      const Grammar::Place& at = grammar_.place(frame.place);
      if (at.leftmost) {
        // Its own rule may be entered, too.
        callers_.try_emplace({grammar_.rule(at.owner).rank, at.owner});
        held.emplace(frame, std::move(behind));
      } else {
        call(frame, std::move(behind));
      }
    }
    std::map<int32_t, std::map<Frame, std::vector<Node>>> held_by_rule;
    for (auto& [frame, behind] : held) {
      held_by_rule[grammar_.place(frame.place).owner].emplace(frame, std::move(behind));
    }
    while (!callers_.empty()) {
      auto entered = callers_.extract(callers_.begin());
      const int32_t number = entered.key().second;
      std::vector<Node>& callers = entered.mapped();
      sort_unique(callers);
      std::map<Frame, std::vector<Node>> calls = std::move(held_by_rule[number]);
      if (!callers.empty()) {
        for (const int32_t place : grammar_.rule(number).first) {
          machine_.work(std::ssize(callers));
          std::vector<Node>& behind = grammar_.place(place).kind == Grammar::Place::Kind::bytes
                                          ? ends_[place]
                                          : calls[first_turn(place)];
          behind.insert(behind.end(), callers.begin(), callers.end());
        }
      }
      for (auto& [frame, behind] : calls) call(frame, std::move(behind));
    }
  }

  Pushdown& machine_;
  const Grammar& grammar_;
  StateData data_;
  std::vector<std::pair<int32_t, Node>> work_;
  std::unordered_set<uint64_t> seen_;
  std::map<int32_t, std::vector<Node>> ends_;  // places that take a byte
  std::map<Frame, std::vector<Node>> calls_;
  std::map<std::pair<int32_t, int32_t>, std::vector<Node>> callers_;  // by rank and rule
};

size_t Pushdown::Hash::operator()(const std::vector<int32_t>& key) const {
  return XXH3_64bits(key.data(), key.size() * sizeof(int32_t));
}

Pushdown::Pushdown(const Grammar& grammar)
    : grammar_(grammar), classes_(grammar.class_bytes().size()), work_left_(kWorkAtFirst) {
  nodes_.resize(2);  // the bottom, and what is outside
  intern({});        // nothing matches
}

void Pushdown::work(int64_t amount) {
  work_left_ -= amount;
  if (work_left_ < 0) {
    throw Error("grammar", "the text can be read in too many ways at once",
                "make the grammar less ambiguous, or its numbers of repeats smaller");
  }
}

Pushdown::Node Pushdown::node(const Frame& frame, std::vector<Node> behind) {
  std::vector<int32_t> key = {frame.place, static_cast<int32_t>(frame.least),
                              static_cast<int32_t>(frame.most)};
  key.insert(key.end(), behind.begin(), behind.end());
  const size_t bytes = key.size() * 2 * sizeof(int32_t) + sizeof(NodeData) + kMapBytes;
  const auto [found, is_new] =
      node_index_.try_emplace(std::move(key), static_cast<Node>(nodes_.size()));
  if (is_new) {
    work(static_cast<int64_t>(1 + behind.size()));
    nodes_.push_back({frame, std::move(behind)});
    bytes_ += bytes;
  }
  return found->second;
}

Pushdown::State Pushdown::intern(StateData data) {
  std::vector<int32_t> key = data.nodes;
  key.push_back((data.complete ? 1 : 0) | (data.outside ? 2 : 0));
  const size_t bytes = key.size() * 2 * sizeof(int32_t) + sizeof(StateData) + kMapBytes;
  const auto [found, is_new] =
      state_index_.try_emplace(std::move(key), static_cast<State>(states_.size()));
  if (is_new) {
    work(1 + static_cast<int64_t>(classes_) / 16);
    states_.push_back(std::move(data));
    table_.resize(table_.size() + classes_, -1);
    bytes_ += bytes + classes_ * sizeof(State);
  }
  return found->second;
}

Pushdown::State Pushdown::at(std::vector<Node> nodes) {
  StateData data;
  data.nodes = std::move(nodes);
  sort_unique(data.nodes);
  return intern(std::move(data));
}

Pushdown::State Pushdown::start() {
  Closure closure(*this);
  closure.enter(grammar_.start(), kBottom);
  if (grammar_.rule(grammar_.start()).nullable) closure.return_to(kBottom);
  return closure.finish();
}

Pushdown::State Pushdown::make_step(State state, uint8_t byte_class) {
  const uint8_t byte = grammar_.class_bytes()[byte_class];
  Closure closure(*this);
  for (const Node node : nodes(state)) {
    for (const Grammar::Edge& edge : grammar_.place(frame(node).place).edges) {
      if (!edge.bytes[byte]) continue;
      for (const Node behind : this->behind(node)) closure.reach(edge.next, behind);
    }
  }
  work(1);
  const State next = closure.finish();
  table_[static_cast<size_t>(state) * classes_ + byte_class] = next;
  return next;
}

Pushdown::State Pushdown::after_return(std::span<const Node> nodes) {
  Closure closure(*this);
  for (const Node node : nodes) closure.return_to(node);
  return closure.finish();
}

Pushdown::State Pushdown::import(const Pushdown& other, State state) {
  // A node has a higher number than those behind it.
  std::set<Node> wanted(other.nodes(state).begin(), other.nodes(state).end());
  std::vector<Node> work(wanted.begin(), wanted.end());
  while (!work.empty()) {
    const Node node = work.back();
    work.pop_back();
    for (const Node behind : other.behind(node)) {
      if (wanted.insert(behind).second) work.push_back(behind);
    }
  }
  std::unordered_map<Node, Node> own = {{kBottom, kBottom}, {kOutside, kOutside}};
  const auto own_of = [&](std::span<const Node> nodes) {
    std::vector<Node> result;
    for (const Node node : nodes) result.push_back(own.at(node));
    sort_unique(result);
    return result;
  };
  for (const Node node : wanted) {
    if (node == kBottom || node == kOutside) continue;
    own[node] = this->node(other.frame(node), own_of(other.behind(node)));
  }
  StateData data;
  data.nodes = own_of(other.nodes(state));
  data.complete = other.complete(state);
  data.outside = other.outside(state);
  return intern(std::move(data));
}

}  // namespace pronghorn
