// One request on its way through the engine.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "decode/session.h"
#include "serve/engine.h"
#include "serve/prefix_cache.h"

namespace pronghorn {

struct ServedText {
  int64_t id = 0;
  TextRequest request;
  std::vector<ReadingRun> plan;                       // of the whole prompt
  double submitted = 0, joined = 0, first_token = 0;  // times; 0: not yet

  // Once it runs.
  std::optional<Session> session;
  PrefixCache::Place place;  // as far as the prompt has been read; null: nothing is kept
  int64_t last_kept = 0;     // length of the last state kept on the way
  size_t text_told = 0, tokens_told = 0;
  TextSummary summary;

  int64_t prompt_tokens() const { return std::ssize(request.prompt); }
};

// What is still to be read of a prompt by who has read `done` tokens of it.
std::vector<ReadingRun> rest_of(std::span<const ReadingRun> plan, int64_t done);

// Tells the request what has been written since it was last told.
void tell_written(ServedText& text, const Generated& result);

// Tells it that it has ended.
void tell_end(ServedText& text, TextSummary::End end);

}  // namespace pronghorn
