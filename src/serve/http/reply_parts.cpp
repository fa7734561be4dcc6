#include "serve/http/reply_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "formats/utf8.h"

namespace pronghorn::serve {
namespace {

double per_second(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

}  // namespace

std::string new_id(std::string_view prefix) {
  constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyz0123456789";
  constexpr int kLength = 24;
  thread_local std::random_device device;
  std::uniform_int_distribution<size_t> letter(0, kLetters.size() - 1);
  std::string id(prefix);
  for (int i = 0; i < kLength; ++i) id += kLetters[letter(device)];
  return id;
}

const char* finish_reason(const TextSummary& summary, bool calls) {
  if (calls) return "tool_calls";
  return summary.end == TextSummary::End::length ? "length" : "stop";
}

nlohmann::json usage_json(const TextSummary& total) {
  return {{"prompt_tokens", total.prompt_tokens},
          {"completion_tokens", total.tokens},
          {"total_tokens", total.prompt_tokens + total.tokens},
          {"prompt_tokens_details", {{"cached_tokens", total.cached_tokens}}},
          {"completion_tokens_details",
           {{"accepted_prediction_tokens", total.accepted},
            {"rejected_prediction_tokens", total.drafted - total.accepted}}}};
}

nlohmann::json extension_json(const ServedModel& model, const TextSummary& total,
                              const std::vector<std::string>& ignored) {
  const int64_t read = total.prompt_tokens - total.cached_tokens;
  const int64_t length = total.prompt_tokens + total.tokens;
  nlohmann::json json = {
      {"cache", {{"tokens", total.cached_tokens}, {"why", total.cache}}},
      {"timings",
       {{"queue_seconds", total.queue_seconds},
        {"prompt_seconds", total.prompt_seconds},
        {"decode_seconds", total.decode_seconds},
        {"prompt_tokens_per_second", per_second(read, total.prompt_seconds)},
        {"tokens_per_second", per_second(total.tokens, total.decode_seconds)},
        {"drafted", total.drafted},
        {"accepted", total.accepted},
        {"state_bytes", model.model->predicted_state_bytes(length, model.options.kv_cache)}}}};
  if (!ignored.empty()) json["ignored_fields"] = ignored;
  return json;
}

nlohmann::json with_ignored(nlohmann::json document, const Fields& fields) {
  const std::vector<std::string> ignored = fields.unread();
  if (!ignored.empty()) document["ignored_fields"] = ignored;
  return document;
}

std::string token_text(const ServedModel& model, int32_t token) {
  return model.tokenizer->token_bytes(token, true);
}

std::string token_name(const ServedModel& model, int32_t token) {
  const std::string text = token_text(model, token);
  if (find_invalid_utf8(text) >= text.size()) return text;
  std::string name = "bytes:";
  for (const char byte : text) name += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
  return name;
}

std::string fingerprint(const ServedModel& model) {
  return fmt::format("pronghorn-{:016x}", model.model->fingerprint());
}

}  // namespace pronghorn::serve
