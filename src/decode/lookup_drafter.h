// What drafters that look guesses up in earlier text share.
#pragma once

#include "decode/drafter.h"

namespace pronghorn {

// Kinds of guesses by the number of tokens that matched: 1, 2, 3, 4, then doubling ranges. Longer
// matches come true more often.
constexpr int kMatchKinds = 8;
int match_kind(int64_t length);

// Fills in the answer to a request with what follows in `text` from index `next` on. Where the text
// ends it goes on with what was guessed: a text that repeats itself keeps doing so.
void copy_continuation(std::span<const int32_t> text, size_t next, int kind, DraftRequest& request);

}  // namespace pronghorn
