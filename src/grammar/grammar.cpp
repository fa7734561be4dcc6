#include "grammar/grammar.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <unordered_set>

#include "base/error.h"
#include "base/quote.h"
#include "grammar/rule_analysis.h"

namespace pronghorn {
namespace {

using Kind = Expression::Kind;

constexpr size_t kMostPlaces = size_t{1} << 16;  // some ten megabytes
// Repeats that come to no more places are written out, others are counted.
constexpr int64_t kWrittenOut = 64;
constexpr int64_t kLarge = int64_t{1} << 40;  // of a weight; more is the same

}  // namespace

// From expressions to places, from the end of each rule to its beginning.
class Grammar::Compiler {
 public:
  Compiler(Grammar& grammar, const GrammarRules& rules, std::span<const std::string> special)
      : grammar_(grammar), rules_(rules), known_(rules), weights_(rules.expressions().size(), -1) {
    for (const std::string& text : special) {
      if (text.empty()) continue;
      special_.insert(text);
      special_sizes_.insert(text.size());
    }
  }

  // Of the rules that texts can reach; returns their names.
  std::vector<std::string> run() {
    const GrammarRules::Rule& start = rules_.rule_at(rules_.start);
    if (start.expression < 0 || !matches(start.expression)) {
      throw UsageError("grammar",
                       fmt::format("no text ends: {} matches nothing finite", quote(start.name)),
                       "give each rule a choice that does not need the rule itself");
    }
    grammar_.start_ = compiled_rule(rules_.start);
    while (!waiting_.empty()) {
      const auto [rule, expression] = waiting_.back();
      waiting_.pop_back();
      owner_ = rule;
      const int32_t end = add({});
      const int32_t begin = emit(expression, end);
      Rule& own = grammar_.rules_[static_cast<size_t>(rule)];
      own.start = begin;
      own.nullable = known_.empty[static_cast<size_t>(expression)];
    }
    return std::move(names_);
  }

 private:
  bool matches(int32_t expression) const { return known_.matches[static_cast<size_t>(expression)]; }

  int32_t new_rule(int32_t expression, std::string name) {
    const auto number = static_cast<int32_t>(grammar_.rules_.size());
    grammar_.rules_.emplace_back();
    names_.push_back(std::move(name));
    waiting_.emplace_back(number, expression);
    return number;
  }

  int32_t compiled_rule(int32_t rule) {
    const auto known = of_rules_.find(rule);
    if (known != of_rules_.end()) return known->second;
    const GrammarRules::Rule& given = rules_.rule_at(rule);
    const std::string name =
        given.where.empty() ? given.name : fmt::format("{} at {}", given.name, given.where);
    return of_rules_[rule] = new_rule(given.expression, name);
  }

  // What a counted repeat repeats.
  int32_t repeated_rule(int32_t expression) {
    const auto known = of_repeats_.find(expression);
    if (known != of_repeats_.end()) return known->second;
    return of_repeats_[expression] =
               new_rule(expression, names_[static_cast<size_t>(owner_)] + " (a repeat)");
  }

  int32_t add(Place place) {
    if (grammar_.places_.size() >= kMostPlaces) {
      throw UsageError("grammar", fmt::format("comes to more than {} places", kMostPlaces),
                       "make it smaller");
    }
    place.owner = owner_;
    grammar_.places_.push_back(std::move(place));
    return static_cast<int32_t>(grammar_.places_.size() - 1);
  }

  int32_t add_split(std::vector<int32_t> next) {
    Place place;
    place.kind = Place::Kind::split;
    place.next = std::move(next);
    return add(std::move(place));
  }

  int32_t add_byte(uint8_t byte, int32_t next) {
    Place place;
    place.kind = Place::Kind::bytes;
    place.edges.resize(1);
    place.edges[0].bytes.set(byte);
    place.edges[0].next = next;
    return add(std::move(place));
  }

  // Places that the expression comes to, about.
  int64_t weight(int32_t expression) {
    int64_t& known = weights_[static_cast<size_t>(expression)];
    if (known >= 0) return known;
    const Expression& e = rules_[expression];
    int64_t sum = 1;
    if (e.kind == Kind::literals) {
      for (const std::string& text : e.literals) sum += std::ssize(text);
    } else if (e.kind == Kind::characters) {
      sum = std::min<int64_t>(4, 1 + std::ssize(e.characters.ranges()));
    } else if (e.kind == Kind::repeat) {
      sum += std::max<int64_t>(1, std::max(e.least, e.most)) * weight(e.parts[0]);
      if (sum > kWrittenOut) sum = 2 + weight(e.parts[0]);
    } else {
      for (const int32_t part : e.parts) sum += weight(part);
    }
    return known = std::min(sum, kLarge);
  }

  int32_t emit(int32_t expression, int32_t next) {
    const Expression& e = rules_[expression];
    switch (e.kind) {
      case Kind::literals:
        return emit_literals(e.literals, next);
      case Kind::characters:
        return emit_characters(e.characters, next);
      case Kind::sequence:
        for (size_t i = e.parts.size(); i > 0; --i) next = emit(e.parts[i - 1], next);
        return next;
      case Kind::choice: {
        std::vector<int32_t> all;
        for (const int32_t part : e.parts) {
          if (matches(part)) all.push_back(emit(part, next));
        }
        return all.size() == 1 ? all.front() : add_split(std::move(all));
      }
      case Kind::repeat:
        return emit_repeat(e, next);
      case Kind::rule:
        break;
    }
    Place place;
    place.kind = Place::Kind::call;
    place.rule = compiled_rule(e.rule);
    place.next = {next};
    return add(std::move(place));
  }

  int32_t emit_repeat(const Expression& e, int32_t next) {
    const int32_t part = e.parts[0];
    if (!matches(part) || e.most == 0) return next;
    const int64_t count = e.most < 0 ? e.least : e.most;
    const bool plain = e.most < 0 ? e.least <= 1 : e.most <= 1;
    if (!plain && count > kWrittenOut / std::min(kWrittenOut, weight(part))) {
      Place place;
      place.kind = Place::Kind::repeat;
      place.rule = repeated_rule(part);
      place.least = static_cast<uint32_t>(std::min<int64_t>(e.least, kUnlimited - 1));
      place.most = e.most < 0 || e.most >= kUnlimited ? kUnlimited : static_cast<uint32_t>(e.most);
      place.next = {next};
      return add(std::move(place));
    }
    int32_t begin = next;
    if (e.most < 0) {
      begin = add_split({});
      const int32_t body = emit(part, begin);
      grammar_.places_[static_cast<size_t>(begin)].next = {body, next};
    } else {
      for (int64_t i = e.least; i < e.most; ++i) begin = add_split({emit(part, begin), next});
    }
    for (int64_t i = 0; i < e.least; ++i) begin = emit(part, begin);
    return begin;
  }

  int32_t emit_literals(std::vector<std::string> texts, int32_t next) {
    std::ranges::sort(texts);
    texts.erase(std::unique(texts.begin(), texts.end()), texts.end());
    const auto with_special = std::stable_partition(
        texts.begin(), texts.end(), [&](const std::string& text) { return !has_special(text); });
    std::vector<int32_t> all;
    for (auto text = with_special; text != texts.end(); ++text) {
      all.push_back(emit_with_special(*text, next));
    }
    texts.erase(with_special, texts.end());
    if (!texts.empty()) all.push_back(emit_tree(texts, 0, next));
    return all.size() == 1 ? all.front() : add_split(std::move(all));
  }

  // Calls visit(size) for the special tokens whose texts stand at a place of a text.
  template <typename Visit>
  void visit_special(std::string_view text, size_t at, const Visit& visit) const {
    for (const size_t size : special_sizes_) {
      if (size > text.size() - at) return;
      if (special_.contains(text.substr(at, size))) visit(size);
    }
  }

  bool has_special(std::string_view text) const {
    bool found = false;
    if (text.starts_with(kMark)) return false;  // is one
    for (size_t at = 0; at < text.size() && !found; ++at) {
      visit_special(text, at, [&](size_t) { found = true; });
    }
    return found;
  }

  // Byte by byte, and past each special token in it also by the token's mark.
  int32_t emit_with_special(std::string_view text, int32_t next) {
    std::vector<int32_t> places(text.size() + 1, next);
    for (size_t at = text.size(); at > 0; --at) {
      const size_t begin = at - 1;
      places[begin] = add_byte(static_cast<uint8_t>(text[begin]), places[at]);
      visit_special(text, begin, [&](size_t size) {
        int32_t behind = add_byte(static_cast<uint8_t>(kMark), places[begin + size]);
        for (size_t i = size; i > 0; --i) {
          behind = add_byte(static_cast<uint8_t>(text[begin + i - 1]), behind);
        }
        Edge edge;
        edge.bytes.set(static_cast<uint8_t>(kMark));
        edge.next = behind;
        grammar_.places_[static_cast<size_t>(places[begin])].edges.push_back(edge);
      });
    }
    return places[0];
  }

  // Of sorted texts, which are the same up to `depth`.
  int32_t emit_tree(std::span<const std::string> texts, size_t depth, int32_t next) {
    if (texts.size() == 1) {
      const std::string& text = texts.front();
      for (size_t i = text.size(); i > depth; --i) {
        next = add_byte(static_cast<uint8_t>(text[i - 1]), next);
      }
      return next;
    }
    const std::string &first = texts.front(), &last = texts.back();
    size_t same = depth;
    while (same < first.size() && same < last.size() && first[same] == last[same]) ++same;
    int32_t begin = -1;
    std::span<const std::string> rest = texts;
    if (first.size() == same) rest = rest.subspan(1);
    Place place;
    place.kind = Place::Kind::bytes;
    while (!rest.empty()) {
      const char byte = rest.front()[same];
      size_t count = 0;
      while (count < rest.size() && rest[count][same] == byte) ++count;
      Edge edge;
      edge.bytes.set(static_cast<uint8_t>(byte));
      edge.next = emit_tree(rest.first(count), same + 1, next);
      place.edges.push_back(edge);
      rest = rest.subspan(count);
    }
    begin = add(std::move(place));
    if (first.size() == same) begin = add_split({begin, next});
    for (size_t i = same; i > depth; --i) {
      begin = add_byte(static_cast<uint8_t>(first[i - 1]), begin);
    }
    return begin;
  }

  int32_t emit_characters(const CodeSet& set, int32_t next) {
    std::map<std::vector<uint16_t>, int32_t> behind;  // places of what follows the first byte
    // The first bytes that the same bytes follow share an edge.
    std::map<int32_t, std::bitset<256>> edges;
    for (const ByteSequence& sequence : utf8_sequences(set)) {
      int32_t at = next;
      std::vector<uint16_t> key;
      for (int i = sequence.length; i > 1; --i) {
        const ByteRange range = sequence.bytes[static_cast<size_t>(i - 1)];
        key.push_back(static_cast<uint16_t>(range.first << 8 | range.last));
        const auto [known, is_new] = behind.try_emplace(key, -1);
        if (is_new) {
          Place place;
          place.kind = Place::Kind::bytes;
          place.edges.resize(1);
          place.edges[0].next = at;
          for (int byte = range.first; byte <= range.last; ++byte) {
            place.edges[0].bytes.set(static_cast<size_t>(byte));
          }
          known->second = add(std::move(place));
        }
        at = known->second;
      }
      const ByteRange range = sequence.bytes[0];
      for (int byte = range.first; byte <= range.last; ++byte) {
        edges[at].set(static_cast<size_t>(byte));
      }
    }
    Place place;
    place.kind = Place::Kind::bytes;
    for (const auto& [at, bytes] : edges) place.edges.push_back({bytes, at});
    return add(std::move(place));
  }

  Grammar& grammar_;
  const GrammarRules& rules_;
  RuleAnalysis known_;
  std::vector<int64_t> weights_;
  std::vector<std::string> names_;
  std::vector<std::pair<int32_t, int32_t>> waiting_;  // rules and their expressions
  std::map<int32_t, int32_t> of_rules_, of_repeats_;
  std::set<std::string, std::less<>> special_;  // texts of special tokens
  std::set<size_t> special_sizes_;              // theirs
  int32_t owner_ = -1;
};

Grammar::Grammar(GrammarRules rules, std::span<const std::string> special) {
  require(rules.start >= 0, "grammar", "no rule is the first");
  remove_empty_repeats(rules);
  const std::vector<std::string> names = Compiler(*this, rules, special).run();
  find_first_places();
  rank_rules(names);
  find_byte_classes();
}

size_t Grammar::bytes() const {
  size_t bytes = sizeof(Grammar) + places_.size() * sizeof(Place) + rules_.size() * sizeof(Rule);
  for (const Place& at : places_) {
    bytes += at.edges.size() * sizeof(Edge) + at.next.size() * sizeof(int32_t);
  }
  for (const Rule& rule : rules_) bytes += rule.first.size() * sizeof(int32_t);
  return bytes;
}

void Grammar::find_first_places() {
  std::vector<bool> seen(places_.size(), false);
  for (Rule& rule : rules_) {
    std::vector<int32_t> work = {rule.start};
    while (!work.empty()) {
      const int32_t index = work.back();
      work.pop_back();
      if (seen[static_cast<size_t>(index)]) continue;  // places belong to one rule
      seen[static_cast<size_t>(index)] = true;
      Place& at = places_[static_cast<size_t>(index)];
      at.leftmost = true;
      const bool passes =
          at.kind == Place::Kind::split ||
          (at.kind == Place::Kind::call && rules_[static_cast<size_t>(at.rule)].nullable) ||
          (at.kind == Place::Kind::repeat && at.least == 0);
      if (passes) work.insert(work.end(), at.next.begin(), at.next.end());
      if (at.kind != Place::Kind::split && at.kind != Place::Kind::returns) {
        rule.first.push_back(index);
      }
    }
  }
}

// A rule before those that it can begin with; a rule that begins with itself has no such order.
void Grammar::rank_rules(const std::vector<std::string>& names) {
  enum class Mark : uint8_t { unseen, open, done };
  std::vector<Mark> marks(rules_.size(), Mark::unseen);
  auto rank = static_cast<int32_t>(rules_.size());
  struct Visit {
    int32_t rule;
    size_t next = 0;  // of its first places
  };
  for (size_t root = 0; root < rules_.size(); ++root) {
    if (marks[root] != Mark::unseen) continue;
    std::vector<Visit> path = {{static_cast<int32_t>(root)}};
    marks[root] = Mark::open;
    while (!path.empty()) {
      Visit& visit = path.back();
      Rule& rule = rules_[static_cast<size_t>(visit.rule)];
      if (visit.next == rule.first.size()) {
        marks[static_cast<size_t>(visit.rule)] = Mark::done;
        rule.rank = --rank;
        path.pop_back();
        continue;
      }
      const Place& at = place(rule.first[visit.next++]);
      if (at.kind == Place::Kind::bytes) continue;
      Mark& mark = marks[static_cast<size_t>(at.rule)];
      if (mark == Mark::open) {
        throw UsageError("grammar",
                         fmt::format("the rule {} begins with itself (left recursion)",
                                     names[static_cast<size_t>(at.rule)]),
                         "write what repeats with * or at the end of the rule");
      }
      if (mark == Mark::done) continue;
      mark = Mark::open;
      path.push_back({at.rule});
    }
  }
}

void Grammar::find_byte_classes() {
  std::unordered_set<std::bitset<256>> distinct;
  for (const Place& at : places_) {
    for (const Edge& edge : at.edges) distinct.insert(edge.bytes);
  }
  // Bytes that the same edges take: refined by one set of bytes after another.
  std::array<size_t, 256> ids{};
  size_t count = 1;
  for (const std::bitset<256>& bytes : distinct) {
    if (count == 256) break;
    std::array<size_t, 512> refined{};  // by class and whether it is taken; 0: not met yet
    size_t met = 0;
    for (size_t byte = 0; byte < 256; ++byte) {
      size_t& own = refined[2 * ids[byte] + (bytes[byte] ? 1 : 0)];
      if (own == 0) own = ++met;
      ids[byte] = own - 1;
    }
    count = met;
  }
  class_bytes_.resize(count);
  for (size_t byte = 0; byte < 256; ++byte) {
    classes_[byte] = static_cast<uint8_t>(ids[byte]);
    class_bytes_[ids[byte]] = static_cast<uint8_t>(byte);
  }
}

}  // namespace pronghorn
