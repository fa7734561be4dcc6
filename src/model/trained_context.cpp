#include "model/trained_context.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/warning.h"

namespace pronghorn {

bool state_grows(const Model& model) {
  constexpr int64_t kLong = int64_t{1} << 24;  // beyond any window
  return model.predicted_state_bytes(2 * kLong) > model.predicted_state_bytes(kLong);
}

int64_t position_limit(const Model& model) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  const ModelConfig& config = model.config();
  int64_t limit = config.learned_positions > 0 ? config.learned_positions : kNone;
  for (const auto& block : model.blocks()) limit = std::min(limit, block->context_limit());
  return limit == kNone ? kNone : limit - config.prefix_tokens;
}

std::string trained_context_text(const Model& model) {
  const TrainedContext context = trained_context(model.config());
  if (context.tokens == 0) {
    return state_grows(model) ? "not known"
                              : "not known; its state does not grow, so it has no end of its own";
  }
  std::string text = fmt::format("{} tokens", context.tokens);
  if (context.original > 0) {
    text += fmt::format(", by rotary positions scaled from {}", context.original);
  }
  if (!state_grows(model))
    text += "; its state does not grow, so it reads on beyond them untrained";
  return text;
}

void check_context(const Model& model, int64_t tokens, ContextLimit limit) {
  if (limit == ContextLimit::ignore) return;
  const TrainedContext context = trained_context(model.config());
  if (context.tokens == 0 || tokens <= context.tokens) return;
  const std::string trained =
      fmt::format("the model was trained for {}", trained_context_text(model));
  if (limit == ContextLimit::error) {
    throw Error("context", fmt::format("the text has {} tokens, and {}", tokens, trained),
                "shorten it, or do without the strict limit");
  }
  warn_once(fmt::format(
      "context: the text goes beyond what its model knows ({}); expect worse from there on",
      trained));
}

}  // namespace pronghorn
