// Suffix automaton of a growing sequence of tokens: the smallest automaton that accepts every part
// of it (Blumer et al., "The smallest automaton recognizing the subwords of a text", 1985). A state
// stands for parts that end at the same places; at most two states and three edges per token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace pronghorn {

class SuffixAutomaton {
 public:
  SuffixAutomaton();

  // Appends a token; constant time on average.
  void append(int32_t token);
  // Ends a text: no part goes across.
  void separate();

  const std::vector<int32_t>& tokens() const { return tokens_; }

  // The longest end of the sequence that has occurred before: its length, and the index after an
  // earlier occurrence, mostly the last. Length 0: none.
  struct Match {
    int64_t length = 0;
    size_t next = 0;
  };
  const Match& repeated() const { return repeated_; }

  // A place in the automaton: the last `length` tokens read by the cursor are a part of the
  // sequence. Stays valid when the sequence grows.
  struct Cursor {
    int32_t state = 0;
    int64_t length = 0;
  };
  // Moves on by a token, to the longest end of what was read that occurs.
  void follow(Cursor& cursor, int32_t token) const;
  // Where the cursor's tokens occur.
  Match match(const Cursor& cursor) const;

 private:
  struct State {
    int64_t length = 0;  // of the longest part
    int32_t link = -1;   // state of the longest end that occurs at more places
    int32_t first_edge = -1;
    size_t end = 0;  // index after an occurrence
  };
  struct Edge {
    int32_t token, target, next;  // next: of the same state
  };

  int32_t target(int32_t state, int32_t token) const;  // -1: none
  void set_edge(int32_t state, int32_t token, int32_t target);

  std::vector<int32_t> tokens_;
  std::vector<State> states_;
  std::vector<Edge> edges_;
  std::unordered_map<uint64_t, int32_t> index_;  // (state, token) -> edge
  int32_t last_ = 0;
  Match repeated_;
};

}  // namespace pronghorn
