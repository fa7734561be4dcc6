#include "serve/served_text.h"

#include <algorithm>

#include "base/log.h"

namespace pronghorn {

std::vector<ReadingRun> rest_of(std::span<const ReadingRun> plan, int64_t done) {
  std::vector<ReadingRun> rest;
  for (ReadingRun run : plan) {
    if (run.tokens.end <= done) continue;
    run.tokens.begin = std::max(run.tokens.begin, done);
    rest.push_back(run);
  }
  return rest;
}

void tell_written(ServedText& text, const Generated& result) {
  if (text.first_token == 0 && result.tokens > 0) text.first_token = now_seconds();
  if (text.tokens_told == result.ids.size() && text.text_told == result.text.size()) return;
  std::vector<WrittenToken> tokens;
  for (size_t i = text.tokens_told; i < result.ids.size(); ++i) {
    tokens.push_back(result.written.empty() ? WrittenToken{result.ids[i], 0, {}}
                                            : result.written[i]);
  }
  const std::string_view shown = std::string_view(result.text).substr(text.text_told);
  text.tokens_told = result.ids.size();
  text.text_told = result.text.size();
  if (text.request.on_event) text.request.on_event({shown, tokens});
}

void tell_end(ServedText& text, TextSummary::End end) {
  TextSummary& summary = text.summary;
  const double now = now_seconds();
  summary.end = end;
  summary.prompt_tokens = text.prompt_tokens() + (text.session ? text.session->seen() : 0);
  summary.queue_seconds = (text.joined > 0 ? text.joined : now) - text.submitted;
  if (text.joined > 0) {
    summary.prompt_seconds = (text.first_token > 0 ? text.first_token : now) - text.joined;
  }
  if (text.first_token > 0) summary.decode_seconds = now - text.first_token;
  if (text.request.on_end) text.request.on_end(summary);
}

}  // namespace pronghorn
