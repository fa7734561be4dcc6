// Grammar: a context-free grammar over bytes, ready for matching.
//
// Each rule is a network of places. Who matches a text is at a set of places, each with a stack of
// calls that it returns to (grammar/pushdown.h). Repeats with large bounds are calls that count, so
// that a{1000} is no larger than a{2}.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "grammar/grammar_rules.h"

namespace pronghorn {

class Grammar {
 public:
  static constexpr uint32_t kUnlimited = ~uint32_t{0};  // of a repeat that has no end

  // special: texts of special tokens; where a literal has one of them, its token_mark() matches as
  // well. Throws UsageError for a grammar that no text matches, whose rules begin with themselves
  // (left recursion), or that is too large.
  explicit Grammar(GrammarRules rules, std::span<const std::string> special = {});

  struct Edge {
    std::bitset<256> bytes;
    int32_t next = -1;
  };
  struct Place {
    enum class Kind : uint8_t {
      bytes,    // a byte leads along an edge
      split,    // goes on at all of `next`
      call,     // what `rule` says, then next[0]
      repeat,   // what `rule` says, `least` to `most` times, never empty; then next[0]
      returns,  // the end of a rule
    } kind = Kind::returns;
    bool leftmost = false;  // can be reached from the start of its rule without a byte
    int32_t owner = -1;     // the rule
    int32_t rule = -1;
    uint32_t least = 0, most = 0;
    std::vector<Edge> edges;
    std::vector<int32_t> next;
  };
  struct Rule {
    int32_t start = -1;  // a place
    bool nullable = false;
    // Places of kinds bytes, call and repeat that are leftmost.
    std::vector<int32_t> first;
    // Rules that a rule can begin with have higher ranks.
    int32_t rank = 0;
  };

  const Place& place(int32_t index) const { return places_[static_cast<size_t>(index)]; }
  const Rule& rule(int32_t index) const { return rules_[static_cast<size_t>(index)]; }
  int32_t start() const { return start_; }
  size_t places() const { return places_.size(); }
  // Bytes of memory, about.
  size_t bytes() const;

  // Bytes of a class are the same to every edge.
  const std::array<uint8_t, 256>& byte_classes() const { return classes_; }
  // A byte of each class.
  const std::vector<uint8_t>& class_bytes() const { return class_bytes_; }

 private:
  class Compiler;

  void find_first_places();
  void rank_rules(const std::vector<std::string>& names);
  void find_byte_classes();

  std::vector<Place> places_;
  std::vector<Rule> rules_;
  int32_t start_ = -1;
  std::array<uint8_t, 256> classes_{};
  std::vector<uint8_t> class_bytes_;
};

}  // namespace pronghorn
