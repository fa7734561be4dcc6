#include "grammar/json_rules.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "formats/utf8.h"
#include "grammar/pattern_rules.h"

namespace pronghorn {
namespace {

constexpr int64_t kDigits = 16;    // of a number, before the point and after it
constexpr int64_t kIndent = 20;    // spaces of a line at most
constexpr double kLargest = 1e15;  // of a bound: below, doubles are exact

// What a string holds as it stands.
const CodeSet& plain_characters() {
  static const CodeSet set = [] {
    CodeSet others(0, 0x1F);
    others.add('"');
    others.add('\\');
    return others.complement();
  }();
  return set;
}

}  // namespace

int32_t JsonRules::once(const char* name, const std::function<int32_t()>& make) {
  const auto known = std::ranges::find(made_, name, &std::pair<std::string, int32_t>::first);
  if (known != made_.end()) return rules_.rule(known->second);
  const int32_t rule = rules_.declare(name);
  made_.emplace_back(name, rule);
  rules_.define(rule, make());
  return rules_.rule(rule);
}

int32_t JsonRules::space() {
  return once("space", [&] {
    CodeSet blanks;
    blanks.add(' ');
    blanks.add('\t');
    const int32_t line = rules_.sequence(
        {rules_.literal("\n"), rules_.repeat(rules_.characters(blanks), 0, kIndent)});
    return rules_.choice({rules_.literals({"", " "}), line});
  });
}

int32_t JsonRules::punctuation(std::string_view mark) {
  return rules_.sequence({rules_.literal(mark), space()});
}

int32_t JsonRules::member(int32_t name, int32_t value) {
  return rules_.sequence({name, punctuation(":"), value});
}

int32_t JsonRules::value() {
  return once("value", [&] {
    return rules_.choice({any_object(), any_array(), string(), number({}), boolean(), null()});
  });
}

int32_t JsonRules::any_object() {
  return once("object", [&] {
    const int32_t one = member(string(), value());
    const int32_t more =
        rules_.repeat(rules_.sequence({punctuation(","), one}), 0, GrammarRules::kUnlimited);
    return rules_.sequence({punctuation("{"),
                            rules_.optional(rules_.sequence({one, more, space()})),
                            rules_.literal("}")});
  });
}

int32_t JsonRules::any_array() {
  return once("array", [&] {
    const int32_t more =
        rules_.repeat(rules_.sequence({punctuation(","), value()}), 0, GrammarRules::kUnlimited);
    return rules_.sequence({punctuation("["),
                            rules_.optional(rules_.sequence({value(), more, space()})),
                            rules_.literal("]")});
  });
}

// One character of a string, as it stands or escaped; a pair of surrogates is one.
int32_t JsonRules::character() {
  return once("character", [&] {
    const auto hex = [&](std::string_view digits) {
      CodeSet set;
      for (const char c : digits) {
        set.add(static_cast<uint8_t>(c));
        if (c >= 'a') set.add(static_cast<uint8_t>(c - 'a' + 'A'));
      }
      return rules_.characters(std::move(set));
    };
    const int32_t any = hex("0123456789abcdef");
    const int32_t two = rules_.repeat(any, 2, 2), three = rules_.repeat(any, 3, 3);
    const int32_t code =
        rules_.choice({rules_.sequence({hex("0123456789abcef"), three}),
                       rules_.sequence({hex("d"), hex("01234567"), two}),
                       rules_.sequence({hex("d"), hex("89ab"), two, rules_.literal("\\u"), hex("d"),
                                        hex("cdef"), two})});
    return rules_.choice(
        {rules_.characters(plain_characters()),
         rules_.literals({"\\\"", "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t"}),
         rules_.sequence({rules_.literal("\\u"), code})});
  });
}

int32_t JsonRules::string(int64_t least, int64_t most) {
  const auto make = [&] {
    return rules_.sequence(
        {rules_.literal("\""), rules_.repeat(character(), least, most), rules_.literal("\"")});
  };
  // Members with the same bounds share what is kept of them.
  const bool any = least == 0 && most == GrammarRules::kUnlimited;
  return once(any ? "string" : fmt::format("string of {} to {}", least, most).c_str(), make);
}

// One character of the set, escaped where a string needs that.
int32_t JsonRules::escaped(const CodeSet& set) {
  constexpr std::pair<uint32_t, const char*> kNamed[] = {
      {'"', "\\\""}, {'\\', "\\\\"}, {'\b', "\\b"}, {'\f', "\\f"},
      {'\n', "\\n"}, {'\r', "\\r"},  {'\t', "\\t"}};
  std::vector<std::string> escapes;
  for (const auto& [code, text] : kNamed) {
    if (set.contains(code)) escapes.emplace_back(text);
  }
  for (uint32_t code = 0; code < 0x20; ++code) {
    const bool named = std::ranges::find(kNamed, code, &std::pair<uint32_t, const char*>::first) !=
                       std::end(kNamed);
    if (set.contains(code) && !named) escapes.push_back(fmt::format("\\u{:04x}", code));
  }
  std::vector<int32_t> parts = {rules_.characters(set.common(plain_characters()))};
  if (!escapes.empty()) parts.push_back(rules_.literals(std::move(escapes)));
  return rules_.choice(std::move(parts));
}

int32_t JsonRules::matching_string(std::string_view pattern, std::string_view where) {
  const int32_t text = add_pattern(
      rules_, pattern, [&](const CodeSet& set) { return escaped(set); }, where);
  return rules_.sequence({rules_.literal("\""), text, rules_.literal("\"")});
}

// A tree of the names: where a text leaves it, anything follows; at a name it must go on.
int32_t JsonRules::other_name(std::span<const std::string> names) {
  struct Node {
    std::map<uint32_t, size_t> children;
    bool is_name = false;
  };
  std::vector<Node> tree(1);
  for (const std::string& name : names) {
    size_t at = 0;
    for (size_t i = 0; i < name.size();) {
      const size_t length = std::max<size_t>(1, utf8_character(std::string_view(name).substr(i)));
      const uint32_t code = decode_utf8(std::string_view(name).substr(i, length));
      const auto [child, is_new] = tree[at].children.try_emplace(code, tree.size());
      at = child->second;
      if (is_new) tree.emplace_back();
      i += length;
    }
    tree[at].is_name = true;
  }
  const int32_t rest =
      rules_.repeat(rules_.characters(plain_characters()), 0, GrammarRules::kUnlimited);
  std::vector<int32_t> expressions(tree.size());
  // Children have higher numbers.
  for (size_t i = tree.size(); i > 0; --i) {
    const Node& node = tree[i - 1];
    CodeSet taken;
    std::vector<int32_t> parts;
    for (const auto& [code, child] : node.children) {
      taken.add(code);
      if (!plain_characters().contains(code)) continue;
      parts.push_back(rules_.sequence({rules_.characters({code, code}), expressions[child]}));
    }
    parts.push_back(rules_.sequence({rules_.characters(plain_characters().without(taken)), rest}));
    if (!node.is_name) parts.push_back(rules_.empty());
    expressions[i - 1] = rules_.add_rule("name", rules_.choice(std::move(parts)));
  }
  return rules_.sequence({rules_.literal("\""), expressions[0], rules_.literal("\"")});
}

int32_t JsonRules::digits(int64_t least, int64_t most) {
  return rules_.repeat(rules_.characters({'0', '9'}), least, most);
}

// Decimal texts of one length, from `least` to `most`.
int32_t JsonRules::same_length(const std::string& least, const std::string& most) {
  if (least.empty()) return rules_.empty();
  const auto count = std::ssize(least) - 1;
  const auto digit = [&](char first, char last) {
    return rules_.characters({static_cast<uint8_t>(first), static_cast<uint8_t>(last)});
  };
  const std::string zeros(static_cast<size_t>(count), '0'), nines(static_cast<size_t>(count), '9');
  const std::string after_least = least.substr(1), after_most = most.substr(1);
  if (least[0] == most[0]) {
    return rules_.sequence({digit(least[0], least[0]), same_length(after_least, after_most)});
  }
  char first = least[0], last = most[0];
  std::vector<int32_t> parts;
  if (after_least != zeros) {
    parts.push_back(rules_.sequence({digit(first, first), same_length(after_least, nines)}));
    ++first;
  }
  if (after_most != nines) {
    parts.push_back(rules_.sequence({digit(last, last), same_length(zeros, after_most)}));
    --last;
  }
  if (first <= last) {
    parts.push_back(rules_.sequence({digit(first, last), digits(count, count)}));
  }
  return rules_.choice(std::move(parts));
}

// Whole numbers from `least` on, which is 0 or more, to `most`.
int32_t JsonRules::whole(int64_t least, std::optional<int64_t> most) {
  std::vector<int32_t> parts;
  const std::string first = std::to_string(least);
  const std::string last = most ? std::to_string(*most) : std::string(kDigits, '9');
  for (size_t length = first.size(); length <= last.size(); ++length) {
    std::string from(length, '0');
    if (length > 1) from.front() = '1';
    const std::string to(length, '9');
    parts.push_back(
        same_length(length == first.size() ? first : from, length == last.size() ? last : to));
  }
  return rules_.choice(std::move(parts));
}

int32_t JsonRules::with_fraction(int32_t whole) {
  return rules_.sequence(
      {whole, rules_.optional(rules_.sequence({rules_.literal("."), digits(1, kDigits)}))});
}

// Numbers within bounds that are 0 or more; without a sign.
int32_t JsonRules::from_zero(const NumberBounds& bounds, bool fractions) {
  auto least = static_cast<int64_t>(bounds.least.value_or(0));
  std::optional<int64_t> most;
  if (bounds.most) most = static_cast<int64_t>(*bounds.most);
  if (most && (*most < least || (*most == least && (bounds.above_least || bounds.below_most)))) {
    return rules_.nothing();
  }
  if (!fractions) {
    if (bounds.above_least) ++least;
    if (bounds.below_most) --*most;
    return most && *most < least ? rules_.nothing() : whole(least, most);
  }
  const int32_t zeros = rules_.optional(
      rules_.sequence({rules_.literal("."), rules_.repeat(rules_.literal("0"), 1, kDigits)}));
  const auto exactly = [&](int64_t value) {
    return rules_.sequence({rules_.literal(std::to_string(value)), zeros});
  };
  if (most && *most == least) return exactly(least);
  std::vector<int32_t> parts;
  if (bounds.above_least) {
    // A fraction with a digit that is not 0.
    const int32_t some = rules_.sequence({digits(0, kDigits - 1), rules_.characters({'1', '9'})});
    parts.push_back(
        rules_.sequence({rules_.literal(std::to_string(least)), rules_.literal("."), some}));
  } else {
    parts.push_back(with_fraction(rules_.literal(std::to_string(least))));
  }
  if (!most) {
    parts.push_back(with_fraction(whole(least + 1, {})));
  } else {
    if (least + 1 <= *most - 1) parts.push_back(with_fraction(whole(least + 1, *most - 1)));
    if (!bounds.below_most) parts.push_back(exactly(*most));
  }
  return rules_.choice(std::move(parts));
}

int32_t JsonRules::bounded(const NumberBounds& given, bool fractions) {
  NumberBounds bounds = given;
  for (std::optional<double>* bound : {&bounds.least, &bounds.most}) {
    if (!*bound) continue;
    if (!(std::abs(**bound) <= kLargest)) {
      throw UsageError("schema", fmt::format("the bound {} is too large", **bound),
                       "bounds up to 1e15 are understood");
    }
    const bool is_whole = std::floor(**bound) == **bound;
    if (is_whole) continue;
    if (fractions) {
      throw UsageError("schema", fmt::format("the bound {} of a number is not whole", **bound),
                       "bounds of numbers must be whole");
    }
    // The next whole number inside.
    if (bound == &bounds.least) {
      bounds.least = std::ceil(**bound);
      bounds.above_least = false;
    } else {
      bounds.most = std::floor(**bound);
      bounds.below_most = false;
    }
  }
  std::vector<int32_t> parts;
  if (!bounds.most || *bounds.most >= 0) {
    NumberBounds positive = bounds;
    if (!bounds.least || *bounds.least < 0) {
      positive.least = 0;
      positive.above_least = false;
    }
    parts.push_back(from_zero(positive, fractions));
  }
  if (!bounds.least || *bounds.least < 0) {
    // Below zero: the same of the opposite numbers.
    NumberBounds negative;
    negative.least = 0;
    negative.above_least = true;
    if (bounds.most && *bounds.most < 0) {
      negative.least = -*bounds.most;
      negative.above_least = bounds.below_most;
    }
    if (bounds.least) negative.most = -*bounds.least;
    negative.below_most = bounds.above_least;
    parts.push_back(rules_.sequence({rules_.literal("-"), from_zero(negative, fractions)}));
  }
  return rules_.choice(std::move(parts));
}

int32_t JsonRules::integer(const NumberBounds& bounds) {
  if (bounds.any()) return bounded(bounds, false);
  return once("integer", [&] {
    const int32_t large = rules_.sequence({rules_.characters({'1', '9'}), digits(0, kDigits - 1)});
    return rules_.sequence(
        {rules_.optional(rules_.literal("-")), rules_.choice({rules_.literal("0"), large})});
  });
}

int32_t JsonRules::number(const NumberBounds& bounds) {
  if (bounds.any()) return bounded(bounds, true);
  return once("number", [&] {
    CodeSet signs('+', '+');
    signs.add('-');
    CodeSet marks('e', 'e');
    marks.add('E');
    const int32_t exponent = rules_.sequence(
        {rules_.characters(marks), rules_.optional(rules_.characters(signs)), digits(1, 2)});
    return rules_.sequence({with_fraction(integer({})), rules_.optional(exponent)});
  });
}

}  // namespace pronghorn
