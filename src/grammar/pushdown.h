// Pushdown: where a text stands in a grammar, after each byte.
//
// A text may be matched in several ways, each of which is at a place of the network with a stack of
// calls to return to. Stacks are nodes of one graph, shared as far as they are the same: a node is
// a place with the nodes behind it (Tomita's graph-structured stack). A state is a set of nodes.
// Both are numbered as they come up, so that a step that was made before is a look-up in a table.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "grammar/grammar.h"

namespace pronghorn {

class Pushdown {
 public:
  using State = int32_t;
  using Node = int32_t;
  static constexpr State kDead = 0;    // nothing matches any longer
  static constexpr Node kBottom = 0;   // the text is complete
  static constexpr Node kOutside = 1;  // whatever called; what is behind it is not known

  // A place with what a repeat there still has to do.
  struct Frame {
    int32_t place = -1;
    uint32_t least = 0, most = 0;
    auto operator<=>(const Frame&) const = default;
  };

  // The grammar must outlive it.
  explicit Pushdown(const Grammar& grammar);

  // At the beginning of a text.
  State start();
  // After one byte more. Throws Error if that takes unreasonable effort (allow_work()).
  State step(State state, uint8_t byte) {
    const uint8_t byte_class = grammar_.byte_classes()[byte];
    const State known = table_[static_cast<size_t>(state) * classes_ + byte_class];
    return known >= 0 ? known : make_step(state, byte_class);
  }
  // Whether the text may end here.
  bool complete(State state) const { return states_[static_cast<size_t>(state)].complete; }
  // Whether one of the ways has returned to what is outside.
  bool outside(State state) const { return states_[static_cast<size_t>(state)].outside; }
  // Whether some byte may follow.
  bool goes_on(State state) const { return !states_[static_cast<size_t>(state)].nodes.empty(); }

  std::span<const Node> nodes(State state) const {
    return states_[static_cast<size_t>(state)].nodes;
  }
  const Frame& frame(Node node) const { return nodes_[static_cast<size_t>(node)].frame; }
  std::span<const Node> behind(Node node) const { return nodes_[static_cast<size_t>(node)].behind; }

  Node node(const Frame& frame, std::vector<Node> behind);
  // The state in which one way is at each of these nodes, at a place that takes a byte.
  State at(std::vector<Node> nodes);
  // The state after what called `nodes` is returned to.
  State after_return(std::span<const Node> nodes);
  // The same state of another Pushdown of the grammar.
  State import(const Pushdown& other, State state);

  // From here on, so much may be computed before step() throws.
  void allow_work(int64_t amount) { work_left_ = amount; }
  int64_t work_left() const { return work_left_; }
  // Counts work that others do. Throws Error when no more may be done.
  void work(int64_t amount);
  // Bytes of memory, about.
  size_t bytes() const { return bytes_; }

 private:
  struct NodeData {
    Frame frame;
    std::vector<Node> behind;  // sorted
  };
  struct StateData {
    std::vector<Node> nodes;  // sorted
    bool complete = false, outside = false;
  };
  struct Hash {
    size_t operator()(const std::vector<int32_t>& key) const;
  };
  using Index = std::unordered_map<std::vector<int32_t>, int32_t, Hash>;
  class Closure;

  State make_step(State state, uint8_t byte_class);
  State intern(StateData data);

  const Grammar& grammar_;
  size_t classes_;
  std::vector<NodeData> nodes_;
  std::vector<StateData> states_;
  std::vector<State> table_;  // by state, then class of the byte; -1: not known yet
  Index node_index_, state_index_;
  int64_t work_left_;
  size_t bytes_ = 0;
};

}  // namespace pronghorn
