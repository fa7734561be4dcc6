#include "formats/pattern.h"

#include <oniguruma.h>

#include <algorithm>
#include <exception>
#include <string>

#include "formats/utf8.h"

namespace pronghorn {
namespace {

// The pattern has a part that is left to the library.
struct NotRegular : std::exception {};

constexpr size_t kMostNodes = 2000, kMostSets = 64;
constexpr int kDeepest = 50, kMostRepetitions = 1000;
constexpr int kWithoutEnd = -1;

struct Tree {
  enum class Kind : uint8_t { set, before, not_before, sequence, choice, repetition };
  Kind kind = Kind::sequence;
  uint16_t set = 0;
  int least = 0, most = 0;  // repetition; most may be kWithoutEnd
  std::vector<Tree> parts = {};
};

bool may_be_empty(const Tree& tree) {
  const auto empty = [](const Tree& part) { return may_be_empty(part); };
  switch (tree.kind) {
    case Tree::Kind::set:
      return false;
    case Tree::Kind::before:
    case Tree::Kind::not_before:
      return true;
    case Tree::Kind::sequence:
      return std::all_of(tree.parts.begin(), tree.parts.end(), empty);
    case Tree::Kind::choice:
      return std::any_of(tree.parts.begin(), tree.parts.end(), empty);
    case Tree::Kind::repetition:
      return tree.least == 0;
  }
  return true;
}

CodeRanges class_of(int type) {
  const OnigCodePoint* ranges = nullptr;
  OnigCodePoint ignored = 0;
  if (type < 0 || ONIGENC_GET_CTYPE_CODE_RANGE(ONIG_ENCODING_UTF8, static_cast<OnigCtype>(type),
                                               &ignored, &ranges) != 0) {
    throw NotRegular();
  }
  CodeRanges out;
  for (OnigCodePoint i = 0; i < ranges[0]; ++i) {
    if (ranges[2 * i + 1] > kLastCode) break;
    out.push_back({ranges[2 * i + 1], std::min<uint32_t>(ranges[2 * i + 2], kLastCode)});
  }
  return sorted_ranges(std::move(out));
}

class Parser {
 public:
  explicit Parser(std::string_view pattern) : text_(pattern) {}

  PatternGraph run() {
    const Tree tree = choice(false, 0);
    if (!text_.empty()) throw NotRegular();
    const uint16_t end = add({.kind = PatternGraph::Kind::end});
    graph_.start = build(tree, end);
    return std::move(graph_);
  }

 private:
  // -- characters of the pattern

  bool at(std::string_view what) const { return text_.starts_with(what); }
  bool take(std::string_view what) {
    if (!at(what)) return false;
    text_.remove_prefix(what.size());
    return true;
  }
  void expect(std::string_view what) {
    if (!take(what)) throw NotRegular();
  }
  uint32_t take_character() {
    const size_t length = utf8_character(text_.substr(0, 4));
    if (length == 0) throw NotRegular();
    const uint32_t code = decode_utf8(text_.substr(0, length));
    text_.remove_prefix(length);
    return code;
  }
  uint32_t take_number(std::string_view digits, size_t least, size_t most) {
    const auto base = static_cast<uint32_t>(digits.size() > 10 ? 16 : 10);
    const size_t count = std::min(text_.find_first_not_of(digits), text_.size());
    if (count < least || count > most) throw NotRegular();
    const auto value =
        static_cast<uint32_t>(std::stoul(std::string(text_.substr(0, count)), nullptr, base));
    text_.remove_prefix(count);
    return value;
  }

  // -- classes

  static constexpr std::string_view kHex = "0123456789abcdefABCDEF";

  // What stands after a backslash, if it is one character.
  uint32_t escaped_character() {
    constexpr std::string_view kNames = "nrtfvae", kCodes = "\n\r\t\f\v\a\x1B";
    constexpr std::string_view kPlain = "\\.[](){}*+?|^$-/!\"#%&,:;=@_~ ";
    if (take("x{")) {
      const uint32_t code = take_number(kHex, 1, 6);
      expect("}");
      return code;
    }
    if (take("u")) {
      const std::string_view after = text_.substr(std::min<size_t>(4, text_.size()));
      text_ = text_.substr(0, 4);
      const uint32_t code = take_number(kHex, 4, 4);
      text_ = after;
      return code;
    }
    const uint32_t code = take_character();
    if (code >= 0x80) throw NotRegular();
    if (const size_t i = kNames.find(static_cast<char>(code)); i != kNames.npos) {
      return static_cast<unsigned char>(kCodes[i]);
    }
    if (kPlain.find(static_cast<char>(code)) == kPlain.npos) throw NotRegular();
    return code;
  }

  // \w outside of brackets, where the library has another table for the first 256 characters.
  static CodeRanges word_alone() {
    constexpr uint32_t kTable = 256;
    CodeRanges ranges = intersection_of(class_of(ONIGENC_CTYPE_WORD), {{kTable, kLastCode}});
    for (uint32_t code = 0; code < kTable; ++code) {
      if (ONIGENC_IS_CODE_CTYPE(ONIG_ENCODING_UTF8, code, ONIGENC_CTYPE_WORD) != 0) {
        ranges.push_back({code, code});
      }
    }
    return sorted_ranges(std::move(ranges));
  }

  // What stands after a backslash, if it is a class such as \s or \p{L}.
  std::optional<CodeRanges> escaped_class(bool in_brackets) {
    constexpr std::string_view kNames = "sSdDwW";
    if (text_.empty()) throw NotRegular();
    if (const size_t i = kNames.find(text_[0]); i != kNames.npos) {
      text_.remove_prefix(1);
      const CodeRanges found = i < 2         ? class_of(ONIGENC_CTYPE_SPACE)
                               : i < 4       ? class_of(ONIGENC_CTYPE_DIGIT)
                               : in_brackets ? class_of(ONIGENC_CTYPE_WORD)
                                             : word_alone();
      return i % 2 == 0 ? found : complement_of(found);
    }
    bool negated = at("P{");
    if (!take("p{") && !take("P{")) return {};
    if (take("^")) negated = !negated;
    const size_t length = text_.find('}');
    if (length == text_.npos) throw NotRegular();
    std::string name(text_.substr(0, length));
    text_.remove_prefix(length + 1);
    auto* const begin = reinterpret_cast<OnigUChar*>(name.data());
    const CodeRanges found =
        class_of(ONIGENC_PROPERTY_NAME_TO_CTYPE(ONIG_ENCODING_UTF8, begin, begin + name.size()));
    return negated ? complement_of(found) : found;
  }

  // A character without regard to case: those that the library folds to the same. rest: the pattern
  // from the character on, because some fold together with the next.
  static CodeRanges folded(std::string_view rest) {
    if (rest.empty() || static_cast<unsigned char>(rest[0]) >= 0x80) throw NotRegular();
    const auto code = static_cast<unsigned char>(rest[0]);
    CodeRanges ranges = {{code, code}};
    std::vector<OnigCaseFoldCodeItem> items(ONIGENC_GET_CASE_FOLD_CODES_MAX_NUM);
    const auto* const begin = reinterpret_cast<const OnigUChar*>(rest.data());
    const int count = ONIGENC_GET_CASE_FOLD_CODES_BY_STR(ONIG_ENCODING_UTF8, ONIGENC_CASE_FOLD_MIN,
                                                         begin, begin + rest.size(), items.data());
    for (int i = 0; i < count; ++i) {
      const OnigCaseFoldCodeItem& item = items[static_cast<size_t>(i)];
      if (item.byte_len != 1 || item.code_len != 1) throw NotRegular();
      ranges.push_back({item.code[0], item.code[0]});
    }
    return sorted_ranges(std::move(ranges));
  }

  // One character of a class, or the first of a range.
  CodeRanges class_item(bool fold) {
    if (fold) {
      // Ranges and other classes have case foldings of their own.
      if (at("\\") || at("[") || at("&")) throw NotRegular();
      const CodeRanges found = folded(text_.substr(0, 1));
      take_character();
      if (at("-")) throw NotRegular();
      return found;
    }
    if (take("[")) {
      if (at(":")) throw NotRegular();
      return bracket(false);
    }
    uint32_t first = 0;
    if (take("\\")) {
      if (auto found = escaped_class(true)) {
        if (at("-") && !at("-]")) throw NotRegular();
        return *std::move(found);
      }
      first = escaped_character();
    } else {
      if (at("-") && !at("-]") && !first_in_class_) throw NotRegular();
      first = take_character();
    }
    if (!at("-") || at("-]")) return {{first, first}};
    take("-");
    if (at("[") || at("-")) throw NotRegular();
    const uint32_t last = take("\\") ? escaped_character() : take_character();
    if (last < first || last > kLastCode) throw NotRegular();
    return {{first, last}};
  }

  // Behind "[".
  CodeRanges bracket(bool fold) {
    if (++depth_ > kDeepest) throw NotRegular();
    const bool negated = take("^");
    if (negated && fold) throw NotRegular();
    std::optional<CodeRanges> before;  // what stands before "&&"
    CodeRanges here;
    const auto close = [&] {
      if (here.empty()) throw NotRegular();
      here = sorted_ranges(std::move(here));
      if (before) here = intersection_of(*before, here);
    };
    for (bool first = true;; first = false) {
      if (first && at("]")) throw NotRegular();  // a plain bracket
      if (take("]")) break;
      if (take("&&")) {
        close();
        before = std::move(here);
        here.clear();
        continue;
      }
      first_in_class_ = first;
      const CodeRanges item = class_item(fold);
      here.insert(here.end(), item.begin(), item.end());
    }
    close();
    --depth_;
    return negated ? complement_of(here) : here;
  }

  // -- the tree

  uint16_t set(CodeRanges ranges) {
    const auto same = [&](const CodeRanges& known) {
      return std::equal(known.begin(), known.end(), ranges.begin(), ranges.end(),
                        [](const CodeRange& a, const CodeRange& b) {
                          return a.first == b.first && a.last == b.last;
                        });
    };
    auto& sets = graph_.sets;
    const auto found = std::find_if(sets.begin(), sets.end(), same);
    const auto index = static_cast<uint16_t>(found - sets.begin());
    if (found == sets.end()) sets.push_back(std::move(ranges));
    if (sets.size() > kMostSets) throw NotRegular();
    return index;
  }

  Tree choice(bool fold, int depth) {
    if (depth > kDeepest) throw NotRegular();
    Tree tree{.kind = Tree::Kind::choice};
    do {
      Tree sequence;
      while (!text_.empty() && !at("|") && !at(")"))
        sequence.parts.push_back(repeated(fold, depth));
      tree.parts.push_back(std::move(sequence));
    } while (take("|"));
    return tree;
  }

  Tree repeated(bool fold, int depth) {
    Tree part = atom(fold, depth);
    int least = 0, most = kWithoutEnd;
    const bool interval = at("{");
    if (take("{")) {
      least = most = static_cast<int>(take_number("0123456789", 1, 4));
      if (take(",")) {
        most = at("}") ? kWithoutEnd : static_cast<int>(take_number("0123456789", 1, 4));
      }
      expect("}");
      const bool usual = most == kWithoutEnd || (most >= least && most > 0);
      if (!usual || std::max(least, most) > kMostRepetitions) throw NotRegular();
    } else if (take("?")) {
      most = 1;
    } else if (take("+")) {
      least = 1;
    } else if (!take("*")) {
      return part;
    }
    if (may_be_empty(part)) throw NotRegular();
    const bool possessive = take("+");
    if (at("?") || at("*") || at("+") || at("{")) throw NotRegular();
    if (possessive && (interval || part.kind != Tree::Kind::set)) throw NotRegular();
    const uint16_t set = part.set;
    Tree tree{.kind = Tree::Kind::repetition, .least = least, .most = most};
    tree.parts.push_back(std::move(part));
    if (!possessive) return tree;
    // What a possessive repetition of one class has taken it keeps: that is, all there are.
    Tree all;
    if (most == kWithoutEnd) {
      all.parts.push_back(std::move(tree));
      all.parts.push_back({.kind = Tree::Kind::not_before, .set = set});
      return all;
    }
    all.kind = Tree::Kind::choice;  // one, or none where there is none
    all.parts.push_back(std::move(tree.parts[0]));
    all.parts.push_back({.kind = Tree::Kind::not_before, .set = set});
    return all;
  }

  Tree atom(bool fold, int depth) {
    constexpr std::string_view kSpecial = "*+?{^";
    if (kSpecial.find(text_[0]) != kSpecial.npos) throw NotRegular();
    if (take("(")) return group(fold, depth);
    if (take("[")) return {.kind = Tree::Kind::set, .set = set(bracket(fold))};
    if (take(".")) return {.kind = Tree::Kind::set, .set = set(complement_of({{'\n', '\n'}}))};
    if (take("$"))
      return {.kind = Tree::Kind::not_before, .set = set(complement_of({{'\n', '\n'}}))};
    if (take("\\")) {
      if (auto found = escaped_class(false)) return {.kind = Tree::Kind::set, .set = set(*found)};
      const uint32_t code = escaped_character();
      if (fold || code > kLastCode) throw NotRegular();
      return {.kind = Tree::Kind::set, .set = set({{code, code}})};
    }
    const CodeRanges fold_set = fold ? folded(text_) : CodeRanges{};
    const uint32_t code = take_character();
    return {.kind = Tree::Kind::set, .set = set(fold ? fold_set : CodeRanges{{code, code}})};
  }

  // Behind "(".
  Tree group(bool fold, int depth) {
    Tree tree;
    if (at("?=") || at("?!")) {
      tree.kind = at("?=") ? Tree::Kind::before : Tree::Kind::not_before;
      text_.remove_prefix(2);
      if (text_.empty()) throw NotRegular();
      const Tree seen = atom(fold, depth + 1);
      if (seen.kind != Tree::Kind::set) throw NotRegular();
      tree.set = seen.set;
    } else if (take("?:")) {
      tree = choice(fold, depth + 1);
    } else if (take("?i:")) {
      tree = choice(true, depth + 1);
    } else {
      if (at("?")) throw NotRegular();
      tree = choice(fold, depth + 1);
    }
    expect(")");
    return tree;
  }

  // -- the graph

  uint16_t add(const PatternGraph::Node& node) {
    if (graph_.nodes.size() >= kMostNodes) throw NotRegular();
    graph_.nodes.push_back(node);
    return static_cast<uint16_t>(graph_.nodes.size() - 1);
  }
  uint16_t fork(uint16_t next, uint16_t other) {
    return add({.kind = PatternGraph::Kind::fork, .next = next, .other = other});
  }

  // The nodes of a tree that goes on to `next`; returns the first.
  uint16_t build(const Tree& tree, uint16_t next) {
    switch (tree.kind) {
      case Tree::Kind::set:
        return add({.kind = PatternGraph::Kind::character, .set = tree.set, .next = next});
      case Tree::Kind::before:
        return add({.kind = PatternGraph::Kind::before, .set = tree.set, .next = next});
      case Tree::Kind::not_before:
        return add({.kind = PatternGraph::Kind::not_before, .set = tree.set, .next = next});
      case Tree::Kind::sequence:
        for (size_t i = tree.parts.size(); i-- > 0;) next = build(tree.parts[i], next);
        return next;
      case Tree::Kind::choice: {
        uint16_t first = build(tree.parts.back(), next);
        for (size_t i = tree.parts.size() - 1; i-- > 0;) {
          first = fork(build(tree.parts[i], next), first);
        }
        return first;
      }
      case Tree::Kind::repetition:
        break;
    }
    const Tree& part = tree.parts[0];
    uint16_t first = next;
    if (tree.most == kWithoutEnd) {
      first = fork(next, next);
      const uint16_t body = build(part, first);
      graph_.nodes[first].next = body;
    }
    for (int i = tree.least; i < tree.most; ++i) first = fork(build(part, first), next);
    for (int i = 0; i < tree.least; ++i) first = build(part, first);
    return first;
  }

  std::string_view text_;  // the rest of the pattern
  PatternGraph graph_;
  int depth_ = 0;  // of brackets
  bool first_in_class_ = false;
};

}  // namespace

std::optional<PatternGraph> parse_pattern(std::string_view pattern) {
  try {
    return Parser(pattern).run();
  } catch (const NotRegular&) {
    return {};
  }
}

}  // namespace pronghorn
