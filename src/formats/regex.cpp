#include "formats/regex.h"

#include <oniguruma.h>

#include <algorithm>
#include <mutex>

#include "base/error.h"
#include "base/quote.h"
#include "formats/unicode.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

const UChar* bytes_of(std::string_view text) { return reinterpret_cast<const UChar*>(text.data()); }

std::string message_of(int code, OnigErrorInfo* info = nullptr) {
  UChar buffer[ONIG_MAX_ERROR_MESSAGE_LEN] = {};
  const int length = info != nullptr ? onig_error_code_to_str(buffer, code, info)
                                     : onig_error_code_to_str(buffer, code);
  return {reinterpret_cast<const char*>(buffer), static_cast<size_t>(std::max(length, 0))};
}

void initialize_library() {
  static std::once_flag once;
  std::call_once(once, [] {
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
    onig_initialize(encodings, 1);
    // Warnings about patterns would go to stderr.
    onig_set_warn_func(onig_null_warn);
    onig_set_verb_warn_func(onig_null_warn);
    constexpr unsigned kDepth = 250;  // of nested parentheses
    onig_set_parse_depth_limit(kDepth);
  });
}

// What one thread needs to match. Kept for the life of the thread: a text has many pieces.
struct MatchState {
  MatchState() : region(onig_region_new()), limits(onig_new_match_param()) {
    onig_initialize_match_param(limits);
    onig_set_match_stack_limit_size_of_match_param(limits, kMostStack);
  }
  ~MatchState() {
    onig_free_match_param(limits);
    onig_region_free(region, 1);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;

  static constexpr unsigned kMostStack = 16'000'000;  // entries, of some forty bytes
  OnigRegion* region;
  OnigMatchParam* limits;
};

// The reference's Oniguruma counts symbols as [:punct:]; before 6.9.9 it is punctuation alone.
std::string with_symbols_as_punctuation(const std::string& pattern) {
  constexpr std::string_view kPlain = "[:punct:]", kNegated = "[:^punct:]";
  if (pattern.find("punct:]") == pattern.npos) return pattern;
  std::string out;
  int depth = 0;  // of brackets: elsewhere these are ordinary classes of letters
  for (size_t at = 0; at < pattern.size();) {
    const std::string_view rest = std::string_view(pattern).substr(at);
    std::string_view taken = rest.substr(0, 1), written = taken;
    if (rest[0] == '\\') {
      taken = written = rest.substr(0, 2);
    } else if (depth > 0 && rest.starts_with(kPlain)) {
      taken = kPlain;
      written = R"(\p{P}\p{S})";
    } else if (depth > 0 && rest.starts_with(kNegated)) {
      taken = kNegated;
      written = R"([^\p{P}\p{S}])";
    } else if (depth > 0 && rest.starts_with("[:") && rest.find(":]") != rest.npos) {
      taken = written = rest.substr(0, rest.find(":]") + 2);
    } else if (rest[0] == '[') {
      ++depth;
      taken = written = rest.substr(0, rest.starts_with("[^]")  ? 3
                                       : rest.starts_with("[]") ? 2
                                                                : 1);
    } else if (rest[0] == ']' && depth > 0) {
      --depth;
    }
    out += written;
    at += taken.size();
  }
  return out;
}

// Steps back that matching may take: what a usual pattern needs is a few for each byte. A search
// starts with a small allowance that grows, so that what has been spent is known.
constexpr unsigned long kFirstAllowance = 1 << 16, kAllowancePerByte = 200,
                        kLeastBudget = 20'000'000;

size_t budget_for(std::string_view text) { return kLeastBudget + kAllowancePerByte * text.size(); }

constexpr const char* kTooLong = "its pattern takes too long to match a text of {} bytes";

}  // namespace

Regex::Regex(const std::string& pattern, bool literal, const std::string& where) : where_(where) {
  constexpr size_t kLongestPattern = 1 << 16;
  require(pattern.size() <= kLongestPattern, where, "a pattern of {} bytes", pattern.size());
  if (literal) {
    literal_ = pattern;
    return;
  }
  initialize_library();
  const size_t invalid = find_invalid_utf8(pattern);
  require(invalid == pattern.npos, where, "a pattern that is not UTF-8 at byte {}", invalid);
  regex_t* compiled = nullptr;
  OnigErrorInfo info;
  // The library's compiler is not reentrant in every version.
  static std::mutex compiling;
  const std::scoped_lock lock(compiling);
  const std::string ours = with_symbols_as_punctuation(pattern);
  const int code = onig_new(&compiled, bytes_of(ours), bytes_of(ours) + ours.size(),
                            ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_ONIGURUMA, &info);
  require(code == ONIG_NORMAL, where, "pattern {}: {}", quote(pattern), message_of(code, &info));
  code_ = std::shared_ptr<void>(compiled, [](void* p) { onig_free(static_cast<regex_t*>(p)); });
  if (const auto graph = parse_pattern(ours)) automaton_ = Automaton::make(*graph);
}

Regex::Matches Regex::find_all(std::string_view text) const {
  Matches matches;
  if (code_ == nullptr) {
    if (literal_.empty()) return matches;
    for (size_t at = text.find(literal_); at != text.npos;
         at = text.find(literal_, at + literal_.size())) {
      matches.emplace_back(at, at + literal_.size());
    }
    return matches;
  }
  if (automaton_ == nullptr) return find_all_by_library(text);
  require(automaton_->find_all(text, budget_for(text), matches), where_, kTooLong, text.size());
  return matches;
}

Regex::Matches Regex::find_all_by_library(std::string_view text) const {
  Matches matches;
  thread_local MatchState state;
  std::string shadow;
  if (stand_in_characters(text, shadow)) text = shadow;
  auto* regex = static_cast<regex_t*>(code_.get());
  const UChar *begin = bytes_of(text), *end = begin + text.size();
  size_t budget = budget_for(text);
  unsigned long allowance = kFirstAllowance;
  onig_set_retry_limit_in_match_of_match_param(state.limits, allowance);
  onig_set_retry_limit_in_search_of_match_param(state.limits, allowance);
  size_t at = 0, last_end = text.npos;
  while (at <= text.size()) {
    const int found = onig_search_with_param(regex, begin, end, begin + at, end, state.region,
                                             ONIG_OPTION_NONE, state.limits);
    if (found == ONIG_MISMATCH) break;
    if (found == ONIGERR_RETRY_LIMIT_IN_MATCH_OVER || found == ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER) {
      budget -= std::min(budget, allowance);
      allowance = std::min(allowance * 8, budget);
      require(allowance > 0, where_, kTooLong, text.size());
    } else {
      require(found >= 0, where_, "matching its pattern fails: {}", message_of(found));
      const auto from = static_cast<size_t>(state.region->beg[0]);
      const auto to = static_cast<size_t>(state.region->end[0]);
      // A pattern with \K can report a match that begins before the search.
      require(from >= at && to >= from && to <= text.size(), where_,
              "its pattern matches backwards");
      at = to;
      if (from == to && from == last_end) {
        at += at < text.size() ? std::max<size_t>(utf8_character(text.substr(at, 4)), 1) : 1;
        continue;
      }
      last_end = to;
      matches.emplace_back(from, to);
      if (allowance == kFirstAllowance) continue;
      allowance = kFirstAllowance;
    }
    onig_set_retry_limit_in_match_of_match_param(state.limits, allowance);
    onig_set_retry_limit_in_search_of_match_param(state.limits, allowance);
  }
  return matches;
}

}  // namespace pronghorn
