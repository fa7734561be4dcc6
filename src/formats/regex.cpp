#include "formats/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/error.h"

namespace pronghorn {
namespace {

std::string message_of(int code) {
  unsigned char buffer[256] = {};
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

// What one thread needs to match. Kept for the life of the thread: a text has many pieces.
struct MatchState {
  MatchState()
      : data(pcre2_match_data_create(1, nullptr)),
        context(pcre2_match_context_create(nullptr)),
        stack(pcre2_jit_stack_create(kFirstStack, kMostStack, nullptr)) {
    pcre2_jit_stack_assign(context, nullptr, stack);
    // Pre-tokenizers match in a few steps a character; hostile ones stop here.
    pcre2_set_match_limit(context, kMatchLimit);
  }
  ~MatchState() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;

  static constexpr size_t kFirstStack = size_t{32} << 10, kMostStack = size_t{8} << 20;
  static constexpr uint32_t kMatchLimit = 20'000'000;
  pcre2_match_data* data;
  pcre2_match_context* context;
  pcre2_jit_stack* stack;
};

}  // namespace

Regex::Regex(const std::string& pattern, bool literal, const std::string& where) : where_(where) {
  constexpr size_t kLongestPattern = 1 << 16;
  require(pattern.size() <= kLongestPattern && !pattern.empty(), where, "a pattern of {} bytes",
          pattern.size());
  int code = 0;
  size_t offset = 0;
  const uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP);
  pcre2_code* compiled = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                       options, &code, &offset, nullptr);
  require(compiled != nullptr, where, "pattern '{}' fails at {}: {}", pattern.substr(0, 200),
          offset, message_of(code));
  code_ = std::shared_ptr<void>(compiled,
                                [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  // Without a just-in-time compiler matching is slower, and the same.
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
}

std::vector<std::pair<size_t, size_t>> Regex::find_all(std::string_view text) const {
  thread_local MatchState state;
  std::vector<std::pair<size_t, size_t>> matches;
  size_t at = 0;
  while (at < text.size()) {
    const int count = pcre2_match(static_cast<const pcre2_code*>(code_.get()),
                                  reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                  PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, state.data, state.context);
    if (count == PCRE2_ERROR_NOMATCH) break;
    require(count >= 0, where_, "matching its pattern fails: {}", message_of(count));
    const size_t* range = pcre2_get_ovector_pointer(state.data);
    // A pattern with \K can report a match that starts before or ends at its beginning.
    require(range[0] >= at && range[1] > range[0], where_, "its pattern matches backwards");
    matches.emplace_back(range[0], range[1]);
    at = range[1];
  }
  return matches;
}

}  // namespace pronghorn
