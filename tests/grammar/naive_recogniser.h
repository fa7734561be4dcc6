// What a grammar says of a text, by trying everything: from the rules as they are written.
#pragma once

#include <map>
#include <set>
#include <string>

#include "formats/utf8.h"
#include "grammar/grammar_rules.h"

namespace pronghorn::testing_support {

// Of grammars without left recursion in which every expression matches some text.
class NaiveRecogniser {
 public:
  NaiveRecogniser(const GrammarRules& rules, std::string text)
      : rules_(rules), text_(std::move(text)) {
    ends_ = match(rules_.rule_at(rules_.start).expression, 0);
  }

  bool accepts() const { return ends_.contains(text_.size()); }
  // Whether some text of the grammar begins with this one and goes on, or is it.
  bool begins() const { return accepts() || goes_on_; }

 private:
  using Ends = std::set<size_t>;

  const Ends& match(int32_t expression, size_t at) {
    const auto key = std::pair(expression, at);
    const auto known = known_.find(key);
    if (known != known_.end()) return known->second;
    const Ends found = find(rules_[expression], at);
    return known_[key] = found;
  }

  // The text ends in the middle of what is wanted.
  void match_bytes(const std::string& wanted, size_t at, Ends& ends) {
    const std::string_view rest = std::string_view(text_).substr(at);
    if (rest.starts_with(wanted)) ends.insert(at + wanted.size());
    if (rest.size() < wanted.size() && wanted.starts_with(rest)) goes_on_ = true;
  }

  Ends find(const Expression& e, size_t at) {
    Ends ends;
    switch (e.kind) {
      case Expression::Kind::literals:
        for (const std::string& text : e.literals) match_bytes(text, at, ends);
        break;
      case Expression::Kind::characters:
        for (const CodeSet::Range& range : e.characters.ranges()) {
          for (uint32_t code = range.first; code <= range.last; ++code) {
            std::string bytes;
            append_utf8(code, bytes);
            match_bytes(bytes, at, ends);
          }
        }
        break;
      case Expression::Kind::sequence:
        ends = {at};
        for (const int32_t part : e.parts) ends = after(part, ends);
        break;
      case Expression::Kind::choice:
        for (const int32_t part : e.parts) {
          const Ends own = match(part, at);
          ends.insert(own.begin(), own.end());
        }
        break;
      case Expression::Kind::repeat: {
        Ends now = {at};
        if (e.least == 0) ends = now;
        // Beyond as many turns as the text has bytes, only empty ones are left.
        const auto most = static_cast<int64_t>(text_.size() + 1) + e.least;
        for (int64_t i = 1; i <= (e.most < 0 ? most : std::min(e.most, most)); ++i) {
          now = after(e.parts[0], now);
          if (i >= e.least) ends.insert(now.begin(), now.end());
        }
        break;
      }
      case Expression::Kind::rule:
        return match(rules_.rule_at(e.rule).expression, at);
    }
    return ends;
  }

  Ends after(int32_t part, const Ends& starts) {
    Ends ends;
    for (const size_t start : starts) {
      const Ends own = match(part, start);
      ends.insert(own.begin(), own.end());
    }
    return ends;
  }

  const GrammarRules& rules_;
  std::string text_;
  std::map<std::pair<int32_t, size_t>, Ends> known_;
  Ends ends_;
  bool goes_on_ = false;
};

}  // namespace pronghorn::testing_support
