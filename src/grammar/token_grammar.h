// TokenGrammar: a grammar over the tokens of a vocabulary; GrammarState: where a text stands in it.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "grammar/grammar.h"
#include "grammar/pushdown.h"
#include "grammar/token_mask.h"
#include "grammar/token_tree.h"

namespace pronghorn {

// Shared by all texts that follow the grammar, from any thread.
//
// What a place of the grammar allows depends on its stack only for tokens that leave its rule. So
// for each place, with what is left of the repeats around it, one walk over the vocabulary finds
// the tokens that stay inside and where the others leave it; it is kept. For a state, the tokens of
// its places are joined, and those that leave are followed from there with the stack at hand.
class TokenGrammar {
 public:
  TokenGrammar(Grammar grammar, std::shared_ptr<const TokenVocabulary> vocabulary);

  const TokenVocabulary& vocabulary() const { return *vocabulary_; }
  // Bytes of memory, about; more while texts follow it, up to some bound.
  size_t bytes() const { return bytes_; }

 private:
  friend class GrammarState;

  // States and the steps between them, as far as they have come up. When they have become many, new
  // texts and those that go on take a new machine.
  struct Machine {
    explicit Machine(const Grammar& grammar) : states(grammar) {}
    Pushdown states;
    std::unordered_map<Pushdown::State, std::shared_ptr<const TokenMask>> masks;
  };
  // What a place allows while what called its rule is not known.
  struct Inside {
    TokenMask tokens;
    std::vector<uint32_t> exits;  // nodes of the tree where the rule can have been left
  };
  // One way of a state: a place, then the repeats that it is the body of, innermost first, and what
  // the outermost of these returns to.
  struct Way {
    std::vector<Pushdown::Frame> frames;
    std::vector<Pushdown::Node> behind;
  };

  // Each needs the lock.
  void count_bytes();
  void renew(std::shared_ptr<Machine>& machine, Pushdown::State& state, int64_t work);
  std::shared_ptr<const TokenMask> mask(Machine& machine, Pushdown::State state);
  std::vector<Way> ways(const Pushdown& states, Pushdown::State state) const;
  void add_tokens(Pushdown& states, const Way& way, const TokenTree& tree, TokenMask& mask);
  const Inside& inside(Pushdown& states, std::vector<Pushdown::Frame> frames,
                       const TokenTree& tree);
  // Allows what follows from `state` below the nodes begin ... end of a tree.
  void walk(Pushdown& states, Pushdown::State state, const TokenTree& tree, size_t begin,
            size_t end, TokenMask& mask, std::vector<uint32_t>* exits);

  const Grammar grammar_;
  const std::shared_ptr<const TokenVocabulary> vocabulary_;
  const size_t grammar_bytes_, mask_bytes_;
  std::mutex mutex_;
  std::shared_ptr<Machine> machine_;
  using InsideKey = std::pair<bool, std::vector<Pushdown::Frame>>;  // of long tokens; the frames
  std::map<InsideKey, Inside> insides_;
  size_t inside_bytes_ = 0;  // of these
  std::atomic<size_t> bytes_{0};
  std::vector<Pushdown::State> path_;  // of a walk
};

// A value: a copy goes its own way.
class GrammarState {
 public:
  // At the beginning of a text, which the tokens of `ends` end: where it is complete, or where the
  // grammar has the token itself as the last of the text. Throws Error if the grammar takes
  // unreasonable effort, as all members do.
  GrammarState(std::shared_ptr<TokenGrammar> grammar, std::vector<int32_t> ends);

  // Whether the text may end here, and whether it must.
  bool complete() const { return complete_; }
  bool ended() const { return ended_; }
  // The tokens that may come next, those that end the text included where it may end.
  TokenMask allowed();
  // Goes on by a token. False, and nothing has changed, if it must not come.
  bool take(int32_t token);
  // The same for bytes.
  bool take_bytes(std::string_view bytes);

 private:
  class Work;
  void look();
  // After the bytes; needs the lock.
  Pushdown::State after(std::string_view bytes);
  // Whether the token, one of ends_, may end the text here.
  bool may_end(int32_t token);

  std::shared_ptr<TokenGrammar> grammar_;
  std::shared_ptr<const std::vector<int32_t>> ends_;
  std::shared_ptr<TokenGrammar::Machine> machine_;
  Pushdown::State state_ = Pushdown::kDead;
  bool complete_ = false, ended_ = false;
  int64_t work_left_ = 0;
};

}  // namespace pronghorn
