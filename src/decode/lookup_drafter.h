// What drafters that look guesses up in earlier text share.
#pragma once

#include <algorithm>

#include "base/threads.h"
#include "decode/drafter.h"

namespace pronghorn {

// Kinds of guesses by the number of tokens that matched: 1, 2, 3, 4, then doubling ranges. Longer
// matches come true more often.
constexpr int kMatchKinds = 8;
int match_kind(int64_t length);

// Calls answer(request) for each, on several threads where much text has yet to be read.
// unread(request): tokens that the sequence's text has grown by since it was last asked.
template <typename Unread, typename Answer>
void answer_each(std::span<DraftRequest> requests, const Unread& unread, const Answer& answer) {
  constexpr int64_t kForkTokens = 64;  // reading that many outweighs a fork and join
  const auto count = static_cast<int64_t>(requests.size());
  int64_t tokens = count;
  for (const DraftRequest& request : requests) tokens += unread(request);
  const int64_t grain = std::max<int64_t>(1, kForkTokens * count / std::max<int64_t>(1, tokens));
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) answer(requests[static_cast<size_t>(i)]);
  });
}

// Fills in the answer to a request with what follows in `text` from index `next` on. Where the text
// ends it goes on with what was guessed: a text that repeats itself keeps doing so.
void copy_continuation(std::span<const int32_t> text, size_t next, int kind, DraftRequest& request);

}  // namespace pronghorn
