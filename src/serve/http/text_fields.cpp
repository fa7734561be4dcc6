#include "serve/http/text_fields.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <random>

#include "base/error.h"
#include "serve/http/api_error.h"
#include "serve/http/text_run.h"

namespace pronghorn::serve {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 31;
constexpr size_t kMostStopBytes = 1024;
constexpr size_t kMostBiases = 1024;
// Of a text that nobody set an end to, by a model whose context has none.
constexpr int64_t kUnboundedTokens = 4096;

uint64_t drawn_seed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

uint64_t read_seed(Fields& fields) {
  constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const int64_t seed = fields.integer("seed", -1, kLeast, kMost);
  return seed == -1 ? drawn_seed() : static_cast<uint64_t>(seed);
}

// {"token id": number from -100, which rules the token out, to 100}
std::vector<std::pair<int32_t, float>> read_logit_bias(Fields& fields, int64_t vocab_size) {
  const Json& biases = fields.raw("logit_bias");
  if (biases.is_null()) return {};
  if (!biases.is_object()) refuse_field("logit_bias", "must be an object, is " + shown(biases));
  if (biases.size() > kMostBiases) {
    throw ApiError(413, "too_many_items",
                   fmt::format("logit_bias has {} items, more than {}", biases.size(), kMostBiases),
                   "logit_bias");
  }
  std::vector<std::pair<int32_t, float>> result;
  Fields each(biases, "logit_bias");
  for (const auto& [key, value] : biases.items()) {
    int32_t token = -1;
    const auto [end, code] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (code != std::errc() || end != key.data() + key.size() || token < 0 || token >= vocab_size) {
      refuse_field("logit_bias", shown(Json(key)) + " is not the id of a token");
    }
    const auto bias = static_cast<float>(each.number(key, 0, -100, 100));
    result.emplace_back(token, bias <= -100 ? -std::numeric_limits<float>::infinity() : bias);
  }
  return result;
}

void read_sampling(Fields& fields, SamplingOptions& sampling, int64_t vocab_size) {
  sampling.temperature = fields.number("temperature", 1, 0, 100);
  sampling.top_p = fields.number("top_p", 1, 0, 1);
  if (sampling.top_p == 0) sampling.top_k = 1;  // the likeliest alone
  if (sampling.top_p == 0) sampling.top_p = 1;
  const int64_t top_k = fields.integer("top_k", 0, -1, std::numeric_limits<int32_t>::max());
  if (top_k > 0 && sampling.top_k == 0) sampling.top_k = top_k;
  sampling.min_p = fields.number("min_p", 0, 0, 1);
  sampling.presence_penalty = fields.number("presence_penalty", 0, -2, 2);
  sampling.frequency_penalty = fields.number("frequency_penalty", 0, -2, 2);
  sampling.repetition_penalty = fields.number("repetition_penalty", 1, 1e-3, 1e3);
  sampling.logit_bias = read_logit_bias(fields, vocab_size);
  sampling.seed = read_seed(fields);
}

}  // namespace

std::shared_ptr<ServedModel> find_model(Service& service, Fields& fields) {
  return service.models.find(fields.text("model", ""));
}

TextFields read_text_fields(Fields& fields, const ServedModel& model, const ServerOptions& limits) {
  TextFields text;
  text.format = read_answer_format(fields);
  read_sampling(fields, text.options.sampling, model.model->config().vocab_size);
  text.options.stop_at_eos = !fields.boolean("ignore_eos", false);
  text.options.min_tokens = fields.integer("min_tokens", 0, 0, kMostTokens);
  text.options.end_tokens = model.end_tokens;
  text.choices = fields.integer("n", 1, 1, limits.choices);
  text.use_cache = fields.boolean("cache_prompt", true);
  text.cache_salt = fields.text("cache_salt", "");
  text.stream = fields.boolean("stream", false);
  if (const Json& options = fields.raw("stream_options"); !options.is_null()) {
    text.include_usage = Fields(options, "stream_options").boolean("include_usage", false);
  }
  return text;
}

void refuse_choices(const TextFields& text) {
  if (text.choices == 1) return;
  refuse_field("n", fmt::format("must be 1, is {}: this endpoint gives one answer", text.choices));
}

std::vector<std::string> read_stops(Fields& fields, const std::string& key,
                                    const ServerOptions& limits) {
  std::vector<std::string> stops = fields.texts(key, static_cast<size_t>(limits.stops));
  for (const std::string& stop : stops) {
    if (stop.empty()) refuse_field(fields.path(key), "holds an empty string");
    if (stop.size() > kMostStopBytes) {
      throw ApiError(413, "too_long",
                     fmt::format("{} holds a string of {} bytes, more than {}", fields.path(key),
                                 stop.size(), kMostStopBytes),
                     fields.path(key));
    }
  }
  return stops;
}

int64_t read_most_tokens(Fields& fields, int64_t fallback) {
  const int64_t most = fields.integer("max_tokens", fallback, -1, kMostTokens);
  return fields.integer("max_completion_tokens", most, -1, kMostTokens);
}

std::vector<int32_t> read_tokens(const Json& list, const std::string& path,
                                 const ServedModel& model) {
  const int64_t vocab_size = model.model->config().vocab_size;
  std::vector<int32_t> tokens;
  if (!list.is_array()) refuse_field(path, "must be a list of token ids, is " + shown(list));
  for (const Json& item : list) {
    const int64_t token = item.is_number_integer() ? item.get<int64_t>() : -1;
    if (token < 0 || token >= vocab_size) {
      refuse_field(path,
                   fmt::format("holds {}, which is no token id below {}", shown(item), vocab_size));
    }
    tokens.push_back(static_cast<int32_t>(token));
  }
  return tokens;
}

TextRequest TextFields::request(const ServedModel& model, std::vector<int32_t> prompt,
                                int64_t choice, int64_t most) const {
  const auto length = static_cast<int64_t>(prompt.size());
  check_fits(model, length, 1);
  const int64_t context = model.engine->context();
  const int64_t room = context > 0 ? context - length : kMostTokens;
  TextRequest request;
  request.prompt = std::move(prompt);
  request.options = options;
  request.options.max_tokens =
      most >= 0 ? std::min(most, room) : (context > 0 ? room : kUnboundedTokens);
  request.options.sampling.seed += static_cast<uint64_t>(choice);
  request.use_cache = use_cache;
  request.cache_salt = cache_salt;
  return request;
}

}  // namespace pronghorn::serve
