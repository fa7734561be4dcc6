// What a model says of a text that is there already.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "serve/http/service.h"

namespace pronghorn::serve {

// For each token but the first, its log-probability after those before it, and the `likeliest`
// tokens there: one less than there are tokens. Read in pieces, between the steps of the texts that
// are being written. Throws ClientGone.
std::vector<WrittenToken> scored_tokens(Service& service, const ServedModel& model,
                                        std::span<const int32_t> tokens, int64_t likeliest,
                                        const Call& call);

// The mean of the last hidden states of the tokens, of length 1: [hidden_size]. Throws ClientGone.
std::vector<float> embedding(Service& service, const ServedModel& model,
                             std::span<const int32_t> tokens, const Call& call);

}  // namespace pronghorn::serve
