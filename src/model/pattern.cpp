#include "model/pattern.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "base/quote.h"

namespace pronghorn {
namespace {

constexpr int kMaxDepth = 32;

class Parser {
 public:
  Parser(std::string_view text, std::string_view where) : text_(text), where_(where) {}

  std::vector<PatternStep> parse() {
    std::vector<PatternStep> steps = sequence('\0', 0);
    if (blocks_in(steps) == 0) fail("it has no block");
    return steps;
  }

 private:
  [[noreturn]] void fail(std::string_view problem) const {
    throw Error(where_,
                fmt::format("pattern {} does not parse at character {}: {}", quote(text_), at_ + 1,
                            problem),
                "for example \"2a 2[3m a]\": counts, letters, [group], (subsampled span)");
  }

  static int64_t blocks_in(const std::vector<PatternStep>& steps) {
    int64_t count = 0;
    for (const PatternStep& step : steps) count += step.kind == PatternStep::Kind::block;
    return count;
  }

  std::vector<PatternStep> sequence(char end, int depth) {
    if (depth > kMaxDepth) fail("brackets are nested too deeply");
    std::vector<PatternStep> steps;
    while (true) {
      while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t')) ++at_;
      if (at_ == text_.size()) {
        if (end != '\0') fail(fmt::format("'{}' is missing", end));
        return steps;
      }
      if (end != '\0' && text_[at_] == end) {
        ++at_;
        return steps;
      }
      const int64_t count = repeat_count();
      const std::vector<PatternStep> item = one_item(depth);
      if ((blocks_in(steps) + blocks_in(item) * count) > kMaxBlocks) {
        fail(fmt::format("more than {} blocks", kMaxBlocks));
      }
      for (int64_t i = 0; i < count; ++i) steps.insert(steps.end(), item.begin(), item.end());
    }
  }

  int64_t repeat_count() {
    if (at_ == text_.size() || !is_digit(text_[at_])) return 1;
    int64_t count = 0;
    while (at_ < text_.size() && is_digit(text_[at_])) {
      count = count * 10 + (text_[at_++] - '0');
      if (count > kMaxBlocks) fail(fmt::format("a count above {}", kMaxBlocks));
    }
    if (count == 0) fail("a count of 0");
    return count;
  }

  std::vector<PatternStep> one_item(int depth) {
    if (at_ == text_.size()) fail("a block must follow the count");
    const char c = text_[at_];
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      ++at_;
      return {{PatternStep::Kind::block, c}};
    }
    if (c != '[' && c != '(') fail(fmt::format("unexpected {}", quote({&c, 1})));
    ++at_;
    std::vector<PatternStep> inner = sequence(c == '[' ? ']' : ')', depth + 1);
    if (blocks_in(inner) == 0) fail("an empty pair of brackets");
    if (c == '(') {
      inner.insert(inner.begin(), {PatternStep::Kind::open, 0});
      inner.push_back({PatternStep::Kind::close, 0});
    }
    return inner;
  }

  static bool is_digit(char c) { return c >= '0' && c <= '9'; }

  std::string_view text_, where_;
  size_t at_ = 0;
};

}  // namespace

std::vector<PatternStep> parse_pattern(std::string_view pattern, std::string_view where) {
  return Parser(pattern, where).parse();
}

std::string expanded_pattern(const std::vector<PatternStep>& steps) {
  std::string text;
  for (const PatternStep& step : steps) {
    switch (step.kind) {
      case PatternStep::Kind::block:
        text += step.block;
        break;
      case PatternStep::Kind::open:
        text += '(';
        break;
      case PatternStep::Kind::close:
        text += ')';
        break;
    }
  }
  return text;
}

std::string compressed_pattern(std::string_view letters) {
  // Longer groups than these are no pattern that anybody would see.
  constexpr size_t kMaxPeriod = 64;
  std::string text;
  while (!letters.empty()) {
    // What saves most: the first `period` letters, `count` times.
    size_t period = 1, count = 1;
    for (size_t p = 1; p <= std::min(kMaxPeriod, letters.size() / 2); ++p) {
      size_t n = 1;
      while (letters.substr(n * p, p) == letters.substr(0, p)) ++n;
      if (p * (n - 1) > period * (count - 1)) std::tie(period, count) = std::pair(p, n);
    }
    if (!text.empty()) text += ' ';
    if (count > 1) text += std::to_string(count);
    const std::string_view group = letters.substr(0, period);
    text += period == 1 ? std::string(group) : fmt::format("[{}]", compressed_pattern(group));
    letters.remove_prefix(period * count);
  }
  return text;
}

}  // namespace pronghorn
