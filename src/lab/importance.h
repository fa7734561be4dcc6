// What a subsampled model finds important: how deep into its spans each token of a text went.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/tokenizer.h"
#include "lab/token_view.h"
#include "model/model.h"

namespace pronghorn::lab {

struct TokenImportance {
  int32_t id = 0;
  std::string bytes;
  int64_t depth = 0;          // spans that it entered
  std::vector<float> scores;  // at each span that it came to, in pattern order
};

struct ReadText {
  std::vector<TokenImportance> tokens;
  SequenceState state;  // after them
};

// Reads the text as a prompt. Throws Error if it gives no token.
ReadText read_importance(const Model& model, const Tokenizer& tokenizer, std::string_view text);

// Strength: the deepest level that the token entered, and within it the weight clamp(score, 0, 1)
// with which it did.
TokenView importance_view(const std::vector<TokenImportance>& tokens);

}  // namespace pronghorn::lab
