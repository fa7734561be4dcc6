#include <algorithm>
#include <map>
#include <tuple>

#include "base/error.h"
#include "base/quote.h"
#include "formats/utf8.h"
#include "grammar/grammar_rules.h"

namespace pronghorn {
namespace {

constexpr int kMostNested = 100;             // groups within one another
constexpr int64_t kMostRepeats = 1'000'000;  // in braces
constexpr size_t kMostBytes = size_t{1} << 20;

bool begins_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool continues_name(char c) { return begins_name(c) || (c >= '0' && c <= '9') || c == '-'; }

class Parser {
 public:
  Parser(std::string_view text, std::string_view where) : text_(text), where_(where) {}

  GrammarRules parse() {
    if (text_.size() > kMostBytes) {
      throw UsageError(where_, fmt::format("has {} bytes, more than {}", text_.size(), kMostBytes));
    }
    const size_t bad = find_invalid_utf8(text_);
    if (bad != std::string_view::npos) fail(bad, "is not UTF-8");
    skip_space();
    if (at_end()) fail(at_, "has no rule", "write one: root ::= ...");
    while (!at_end()) rule();
    for (const auto& [name, place] : used_) {
      const auto found = rules_of_.find(name);
      if (grammar_.rule_at(found->second).expression < 0) {
        fail(place, fmt::format("there is no rule {}", quote(name)));
      }
    }
    const auto root = rules_of_.find("root");
    if (root == rules_of_.end()) fail(0, "has no rule 'root'", "texts follow the rule root");
    grammar_.start = root->second;
    return std::move(grammar_);
  }

 private:
  [[noreturn]] void fail(size_t at, std::string_view problem, std::string_view remedy = {}) const {
    throw UsageError(fmt::format("{}:{}", where_, place_of(at)), problem, remedy);
  }

  // "line:column", in characters, from 1 on.
  std::string place_of(size_t at) const {
    const std::string_view before = text_.substr(0, std::min(at, text_.size()));
    const size_t line = before.rfind('\n') == before.npos ? 0 : before.rfind('\n') + 1;
    const auto starts_character = [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; };
    return fmt::format("{}:{}", std::ranges::count(before, '\n') + 1,
                       std::ranges::count_if(before.substr(line), starts_character) + 1);
  }

  bool at_end() const { return at_ >= text_.size(); }
  char look(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }

  void skip_space() {
    while (!at_end()) {
      const char c = look();
      if (c == '#') {
        while (!at_end() && look() != '\n') ++at_;
      } else if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
        ++at_;
      } else {
        return;
      }
    }
  }

  std::string name() {
    const size_t begin = at_;
    while (continues_name(look())) ++at_;
    return std::string(text_.substr(begin, at_ - begin));
  }

  int32_t number_of(const std::string& name, size_t place) {
    const auto [found, is_new] = rules_of_.try_emplace(name, 0);
    if (is_new) found->second = grammar_.declare(name, place_of(place));
    return found->second;
  }

  // Whether `name ::=` stands here: the beginning of the next rule.
  bool at_rule() {
    if (!begins_name(look())) return false;
    const size_t begin = at_;
    name();
    skip_space();
    const bool found = text_.substr(at_).starts_with("::=");
    at_ = begin;
    return found;
  }

  void rule() {
    const size_t begin = at_;
    if (!begins_name(look())) fail(at_, "expected the name of a rule");
    const std::string own = name();
    skip_space();
    if (!text_.substr(at_).starts_with("::=")) {
      fail(at_, fmt::format("expected ::= after {}", quote(own)));
    }
    at_ += 3;
    skip_space();
    const int32_t number = number_of(own, begin);
    if (grammar_.rule_at(number).expression >= 0) {
      fail(begin, fmt::format("the rule {} is defined twice", quote(own)));
    }
    grammar_.define(number, choice(0));
    if (look() == ')') fail(at_, "this parenthesis closes no group");
  }

  int32_t choice(int depth) {
    if (depth > kMostNested) {
      fail(at_, fmt::format("groups are nested deeper than {}", kMostNested));
    }
    std::vector<int32_t> parts = {sequence(depth)};
    while (look() == '|') {
      ++at_;
      skip_space();
      parts.push_back(sequence(depth));
    }
    return grammar_.choice(std::move(parts));
  }

  int32_t sequence(int depth) {
    std::vector<int32_t> parts;
    while (!at_end() && look() != '|' && look() != ')' && !at_rule()) {
      int32_t part = element(depth);
      skip_space();
      part = repeated(part);
      parts.push_back(part);
    }
    return grammar_.sequence(std::move(parts));
  }

  int32_t element(int depth) {
    const char c = look();
    if (c == '"') return literal();
    if (c == '[') return characters();
    if (c == '.') {
      ++at_;
      return grammar_.characters(CodeSet().complement());
    }
    if (c == '(') {
      const size_t begin = at_++;
      skip_space();
      const int32_t group = choice(depth + 1);
      if (look() != ')') fail(begin, "this group is not closed");
      ++at_;
      return group;
    }
    if (begins_name(c)) {
      const size_t begin = at_;
      const std::string used = name();
      used_.emplace_back(used, begin);
      return grammar_.rule(number_of(used, begin));
    }
    fail(at_, fmt::format("unexpected {}", quote(text_.substr(at_, character_length()))));
  }

  size_t character_length() const { return std::max<size_t>(1, utf8_character(text_.substr(at_))); }

  int32_t repeated(int32_t part) {
    int times = 0;
    while (true) {
      const char c = look();
      if (c != '*' && c != '+' && c != '?' && c != '{') return part;
      if (++times > 4) fail(at_, "too many repeats in a row");
      const size_t begin = at_++;
      int64_t least = c == '+' ? 1 : 0;
      int64_t most = c == '?' ? 1 : GrammarRules::kUnlimited;
      if (c == '{') {
        std::tie(least, most) = bounds(begin);
      }
      part = grammar_.repeat(part, least, most);
      skip_space();
    }
  }

  int64_t count() {
    skip_space();
    const size_t begin = at_;
    int64_t value = 0;
    while (look() >= '0' && look() <= '9') {
      value = value * 10 + (look() - '0');
      if (value > kMostRepeats) fail(begin, fmt::format("more than {} repeats", kMostRepeats));
      ++at_;
    }
    if (at_ == begin) fail(at_, "expected a number");
    skip_space();
    return value;
  }

  std::pair<int64_t, int64_t> bounds(size_t begin) {
    skip_space();
    const int64_t least = look() == ',' ? 0 : count();
    int64_t most = least;
    if (look() == ',') {
      ++at_;
      skip_space();
      most = look() == '}' ? GrammarRules::kUnlimited : count();
    }
    if (look() != '}') fail(begin, "these braces are not closed");
    ++at_;
    if (most >= 0 && most < least) {
      fail(begin, fmt::format("at least {} and at most {} cannot be", least, most));
    }
    return {least, most};
  }

  uint32_t hex(int digits, size_t begin) {
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i, ++at_) {
      const char c = look();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail(begin, fmt::format("the escape needs {} hexadecimal digits", digits));
      value = value << 4 | static_cast<uint32_t>(digit);
    }
    if (value > CodeSet::kLast || (value >= 0xD800 && value <= 0xDFFF)) {
      fail(begin, fmt::format("U+{:04X} is no character", value));
    }
    return value;
  }

  // One character of a literal or class, escapes resolved.
  uint32_t character() {
    const size_t begin = at_;
    if (look() != '\\') {
      const size_t length = character_length();
      const uint32_t code = decode_utf8(text_.substr(at_, length));
      at_ += length;
      return code;
    }
    ++at_;
    const char c = look();
    ++at_;
    switch (c) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'x':
        return hex(2, begin);
      case 'u':
        return hex(4, begin);
      case 'U':
        return hex(8, begin);
      case '\\':
      case '"':
      case '[':
      case ']':
      case '-':
      case '^':
        return static_cast<uint32_t>(c);
      default:
        fail(begin, "unknown escape",
             "\\n \\r \\t \\\\ \\\" \\[ \\] \\- \\^ \\xHH \\uHHHH \\UHHHHHHHH");
    }
  }

  int32_t literal() {
    const size_t begin = at_++;
    std::string bytes;
    while (look() != '"') {
      if (at_end() || look() == '\n') fail(begin, "this literal is not closed");
      append_utf8(character(), bytes);
    }
    ++at_;
    return grammar_.literal(bytes);
  }

  int32_t characters() {
    const size_t begin = at_++;
    const bool negated = look() == '^';
    if (negated) ++at_;
    CodeSet set;
    while (look() != ']') {
      if (at_end() || look() == '\n') fail(begin, "these characters are not closed");
      const size_t from = at_;
      const uint32_t first = character();
      uint32_t last = first;
      if (look() == '-' && look(1) != ']' && at_ + 1 < text_.size()) {
        ++at_;
        last = character();
      }
      if (last < first) fail(from, "the range runs backwards");
      set.add(first, last);
    }
    ++at_;
    if (negated) set = set.complement();
    if (set.empty()) fail(begin, "no character is left to match");
    return grammar_.characters(std::move(set));
  }

  std::string_view text_, where_;
  size_t at_ = 0;
  GrammarRules grammar_;
  std::map<std::string, int32_t> rules_of_;
  std::vector<std::pair<std::string, size_t>> used_;
};

}  // namespace

GrammarRules parse_grammar(std::string_view text, std::string_view where) {
  return Parser(text, where).parse();
}

}  // namespace pronghorn
