#include "lab/importance.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"

namespace pronghorn::lab {

ReadText read_importance(const Model& model, const Tokenizer& tokenizer, std::string_view text) {
  const std::vector<int32_t> ids = tokenizer.encode(text);
  require(!ids.empty(), "text", "gives no token");
  ReadText read{{}, model.new_state()};
  read_in_pieces(static_cast<int64_t>(ids.size()), [&](int64_t done, int64_t count) {
    const auto piece =
        std::span(ids).subspan(static_cast<size_t>(done), static_cast<size_t>(count));
    std::vector<SpanTrace> trace;
    ForwardObserver observer;
    observer.on_span = [&](const SpanTrace& span) { trace.push_back(span); };
    model.forward({}, continue_sequence(read.state, piece), observer);
    for (const int32_t id : piece) read.tokens.push_back({id, tokenizer.token_bytes(id), 0, {}});
    for (const SpanTrace& span : trace) {
      for (size_t i = 0; i < span.rows.size(); ++i) {
        TokenImportance& token = read.tokens[static_cast<size_t>(done + span.rows[i])];
        token.scores.push_back(span.scores[i]);
        token.depth += span.scores[i] > 0;
      }
    }
  });
  return read;
}

TokenView importance_view(const std::vector<TokenImportance>& tokens) {
  TokenView view;
  int64_t deepest = 1;
  for (const TokenImportance& token : tokens) deepest = std::max(deepest, token.depth);
  const auto levels = static_cast<double>(deepest);
  for (const TokenImportance& token : tokens) {
    double strength = 0;
    if (token.depth > 0) {
      const float weight =
          std::clamp(*std::max_element(token.scores.begin(), token.scores.end()), 0.0f, 1.0f);
      strength = (static_cast<double>(token.depth) - 0.5 + 0.5 * double{weight}) / levels;
    }
    view.tokens.push_back({token.bytes, strength,
                           fmt::format("entered {} of {} spans; scores {:.2f}", token.depth,
                                       token.scores.size(), fmt::join(token.scores, ", "))});
  }
  view.legend = {{0, "outer layers only"}};
  for (int64_t depth = 1; depth <= deepest; ++depth) {
    view.legend.push_back({static_cast<double>(depth) / levels,
                           fmt::format("entered {} span{}", depth, depth == 1 ? "" : "s")});
  }
  return view;
}

}  // namespace pronghorn::lab
