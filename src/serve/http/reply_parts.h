// Parts of answers that several endpoints have in common.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "serve/http/fields.h"
#include "serve/http/text_run.h"

namespace pronghorn::serve {

// "chatcmpl-" and 24 letters and digits that nobody can guess.
std::string new_id(std::string_view prefix);

// "length" or "stop"; calls: the answer called tools.
const char* finish_reason(const TextSummary& summary, bool calls = false);

// {prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details, ...} of OpenAI's API.
nlohmann::json usage_json(const TextSummary& total);
// What this server says beside the fields of the API: {"cache": {tokens, why}, "timings": {...},
// "ignored_fields": [...]}. ignored: names of fields; left out if there are none.
nlohmann::json extension_json(const ServedModel& model, const TextSummary& total,
                              const std::vector<std::string>& ignored);

// Adds the list alone to the answer of an endpoint that writes no text.
nlohmann::json with_ignored(nlohmann::json document, const Fields& fields);

// The bytes of a token, of special tokens their names.
std::string token_text(const ServedModel& model, int32_t token);
// The same as a text that no other token has: "bytes:\xe2\x82" where they are not whole characters.
std::string token_name(const ServedModel& model, int32_t token);

// A name that tells models of other numbers apart, as far as their configuration does.
std::string fingerprint(const ServedModel& model);

}  // namespace pronghorn::serve
