// The fields that all endpoints which write texts share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "serve/http/answer_format.h"
#include "serve/http/fields.h"
#include "serve/http/service.h"

namespace pronghorn::serve {

struct TextFields {
  GenerateOptions options;  // without end tokens and max_tokens
  int64_t choices = 1;      // texts for each prompt, with seeds that follow one another
  bool use_cache = true;
  std::string cache_salt;
  bool stream = false, include_usage = false;
  AnswerFormat format;  // who asks for the text gives the options its grammar

  // A request for a text that continues `prompt`, for the choice of that number. most: tokens at
  // most, as was asked for; -1: as many as there is room for. Throws ApiError for a prompt that
  // leaves no room in the context.
  TextRequest request(const ServedModel& model, std::vector<int32_t> prompt, int64_t choice,
                      int64_t most) const;
};

// The model that the field `model` names.
std::shared_ptr<ServedModel> find_model(Service& service, Fields& fields);

// Reads what is there of sampling (temperature, top_p, top_k, min_p, the penalties, logit_bias,
// seed), n, min_tokens, ignore_eos, cache_prompt, cache_salt, stream, stream_options,
// response_format and grammar. A seed
// that is absent or -1 is drawn. Throws ApiError for values out of range.
TextFields read_text_fields(Fields& fields, const ServedModel& model, const ServerOptions& limits);

// Of an endpoint that gives one answer: throws ApiError where more are asked for.
void refuse_choices(const TextFields& text);

// The stop strings of `key`. Throws ApiError for empty, long or too many ones.
std::vector<std::string> read_stops(Fields& fields, const std::string& key,
                                    const ServerOptions& limits);

// max_completion_tokens or max_tokens; `fallback` without either.
int64_t read_most_tokens(Fields& fields, int64_t fallback);

// A list of token ids, all in the model's vocabulary. Throws ApiError.
std::vector<int32_t> read_tokens(const Json& list, const std::string& path,
                                 const ServedModel& model);

}  // namespace pronghorn::serve
