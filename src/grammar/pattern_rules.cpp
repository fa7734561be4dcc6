#include "grammar/pattern_rules.h"

#include "base/error.h"
#include "base/quote.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

constexpr int kMostNested = 50;
constexpr int64_t kMostRepeats = 1'000'000;
constexpr size_t kMostBytes = 4096;

CodeSet digits() { return {'0', '9'}; }

CodeSet word_characters() {
  CodeSet set = digits();
  set.add('a', 'z');
  set.add('A', 'Z');
  set.add('_');
  return set;
}

CodeSet spaces() {
  CodeSet set('\t', '\r');
  set.add(' ');
  set.add(0xA0);
  set.add(0x1680);
  set.add(0x2000, 0x200A);
  set.add(0x2028, 0x2029);
  set.add(0x202F);
  set.add(0x205F);
  set.add(0x3000);
  set.add(0xFEFF);
  return set;
}

CodeSet any_but_line_ends() {
  CodeSet ends;
  ends.add('\n');
  ends.add('\r');
  ends.add(0x2028, 0x2029);
  return ends.complement();
}

class PatternParser {
 public:
  PatternParser(GrammarRules& rules, std::string_view pattern,
                const std::function<int32_t(const CodeSet&)>& characters, std::string_view where)
      : rules_(rules), pattern_(pattern), characters_(characters), where_(where) {}

  int32_t parse() {
    if (pattern_.size() > kMostBytes) fail(fmt::format("has more than {} bytes", kMostBytes));
    if (find_invalid_utf8(pattern_) != std::string_view::npos) fail("is not UTF-8");
    std::vector<int32_t> parts;
    do {
      parts.push_back(whole_choice());
    } while (take('|'));
    if (at_ < pattern_.size()) fail("has a ) that closes no group");
    return rules_.choice(std::move(parts));
  }

 private:
  [[noreturn]] void fail(std::string_view problem) const {
    throw UsageError(where_, fmt::format("the pattern {} {} (at character {})", quote(pattern_),
                                         problem, at_ + 1));
  }
  [[noreturn]] void refuse(std::string_view what) const {
    fail(fmt::format("has {}, which is not supported", what));
  }

  bool at_end() const { return at_ >= pattern_.size(); }
  char look(size_t ahead = 0) const {
    return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0';
  }
  bool take(char c) {
    if (at_end() || look() != c) return false;
    ++at_;
    return true;
  }

  // A choice of the whole pattern, which may begin with ^ and end with $.
  int32_t whole_choice() {
    const auto anything = [&] {
      return rules_.repeat(characters_(CodeSet().complement()), 0, GrammarRules::kUnlimited);
    };
    std::vector<int32_t> parts;
    if (!take('^')) parts.push_back(anything());
    parts.push_back(sequence(0, true));
    if (!take('$')) parts.push_back(anything());
    return rules_.sequence(std::move(parts));
  }

  int32_t choice(int depth) {
    if (depth > kMostNested) fail(fmt::format("nests groups deeper than {}", kMostNested));
    std::vector<int32_t> parts;
    do {
      parts.push_back(sequence(depth, false));
    } while (take('|'));
    return rules_.choice(std::move(parts));
  }

  // outermost: a $ at its end belongs to whoever asks.
  int32_t sequence(int depth, bool outermost) {
    std::vector<int32_t> parts;
    while (!at_end() && look() != '|' && look() != ')') {
      if (look() == '$' && outermost && (look(1) == '|' || at_ + 1 == pattern_.size())) break;
      if (look() == '$' || look() == '^') refuse("an anchor inside");
      parts.push_back(repeated(element(depth)));
    }
    return rules_.sequence(std::move(parts));
  }

  int32_t element(int depth) {
    const char c = look();
    if (c == '(') return group(depth);
    if (c == '[') return characters_(character_class());
    if (c == '.') {
      ++at_;
      return characters_(any_but_line_ends());
    }
    if (c == '*' || c == '+' || c == '?') fail("repeats nothing");
    if (c == '{' || c == '}' || c == ']') fail("has a bracket without its other");
    return characters_(character(false));
  }

  int32_t group(int depth) {
    ++at_;
    if (take('?')) {
      if (take('<') && look() != '=' && look() != '!') {
        while (!at_end() && look() != '>') ++at_;
        if (!take('>')) fail("has a group whose name does not end");
      } else if (!take(':')) {
        refuse("a group that looks ahead or behind, or sets options");
      }
    }
    const int32_t inside = choice(depth + 1);
    if (!take(')')) fail("has a group that is not closed");
    return inside;
  }

  int32_t repeated(int32_t part) {
    int64_t least = 0, most = GrammarRules::kUnlimited;
    if (take('?')) {
      most = 1;
    } else if (take('+')) {
      least = 1;
    } else if (take('{')) {
      least = count();
      most = least;
      if (take(',')) most = look() == '}' ? GrammarRules::kUnlimited : count();
      if (!take('}')) fail("has a { that is not closed");
      if (most >= 0 && most < least) fail("has bounds the wrong way round");
    } else if (!take('*')) {
      return part;
    }
    take('?');  // to take as little as possible gives the same texts
    if (look() == '+') refuse("a possessive repeat");
    if (look() == '*' || look() == '?' || look() == '{') fail("repeats a repeat");
    return rules_.repeat(part, least, most);
  }

  int64_t count() {
    if (look() < '0' || look() > '9') fail("needs a number in { }");
    int64_t value = 0;
    while (look() >= '0' && look() <= '9') {
      value = value * 10 + (pattern_[at_++] - '0');
      if (value > kMostRepeats) fail(fmt::format("repeats more than {} times", kMostRepeats));
    }
    return value;
  }

  uint32_t hex(size_t digits) {
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const char c = look();
      const bool digit = c >= '0' && c <= '9';
      const char lower = static_cast<char>(c | 0x20);
      if (!digit && !(lower >= 'a' && lower <= 'f')) fail("has an escape with too few digits");
      value = value << 4 | static_cast<uint32_t>(digit ? c - '0' : lower - 'a' + 10);
    }
    return value;
  }

  uint32_t unicode_escape() {
    uint32_t code = 0;
    if (take('{')) {
      while (!at_end() && look() != '}' && code <= CodeSet::kLast) code = code << 4 | hex(1);
      if (!take('}')) fail("has an escape that is not closed");
    } else {
      code = hex(4);
      const bool high = code >= 0xD800 && code < 0xDC00;
      if (high && look() == '\\' && look(1) == 'u') {
        at_ += 2;
        const uint32_t low = hex(4);
        if (low < 0xDC00 || low > 0xDFFF) fail("has half a surrogate pair");
        return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      }
    }
    if (code > CodeSet::kLast || (code >= 0xD800 && code <= 0xDFFF)) fail("names no character");
    return code;
  }

  CodeSet escape(bool in_class) {
    const char c = look();
    if (at_end()) fail("ends with a backslash");
    ++at_;
    switch (c) {
      case 'd':
        return digits();
      case 'D':
        return digits().complement();
      case 'w':
        return word_characters();
      case 'W':
        return word_characters().complement();
      case 's':
        return spaces();
      case 'S':
        return spaces().complement();
      case 't':
        return {'\t', '\t'};
      case 'n':
        return {'\n', '\n'};
      case 'r':
        return {'\r', '\r'};
      case 'f':
        return {'\f', '\f'};
      case 'v':
        return {'\v', '\v'};
      case 'x': {
        const uint32_t code = hex(2);
        return {code, code};
      }
      case 'u': {
        const uint32_t code = unicode_escape();
        return {code, code};
      }
      case 'p':
      case 'P':
        refuse("a class of Unicode properties");
      case 'b':
        if (in_class) return {'\b', '\b'};
        refuse("a word boundary");
      default:
        break;
    }
    if (c == '0' && !(look() >= '0' && look() <= '9')) return {0, 0};
    if ((c >= '0' && c <= '9') || c == 'k') refuse("a reference to a group");
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) refuse("an unknown escape");
    --at_;
    return literal();
  }

  CodeSet literal() {
    const size_t length = std::max<size_t>(1, utf8_character(pattern_.substr(at_)));
    const uint32_t code = decode_utf8(pattern_.substr(at_, length));
    at_ += length;
    return {code, code};
  }

  CodeSet character(bool in_class) { return take('\\') ? escape(in_class) : literal(); }

  CodeSet character_class() {
    ++at_;
    const bool negated = take('^');
    CodeSet set;
    while (!take(']')) {
      if (at_end()) fail("has a [ that is not closed");
      const CodeSet first = character(true);
      if (look() == '-' && look(1) != ']' && at_ + 1 < pattern_.size()) {
        ++at_;
        const CodeSet last = character(true);
        if (first.size() != 1 || last.size() != 1) fail("has a range of classes");
        const uint32_t from = first.ranges()[0].first, to = last.ranges()[0].first;
        if (to < from) fail("has a range that runs backwards");
        set.add(from, to);
      } else {
        set.add(first);
      }
    }
    return negated ? set.complement() : set;
  }

  GrammarRules& rules_;
  std::string_view pattern_;
  const std::function<int32_t(const CodeSet&)>& characters_;
  std::string_view where_;
  size_t at_ = 0;
};

}  // namespace

int32_t add_pattern(GrammarRules& rules, std::string_view pattern,
                    const std::function<int32_t(const CodeSet&)>& characters,
                    std::string_view where) {
  return PatternParser(rules, pattern, characters, where).parse();
}

}  // namespace pronghorn
