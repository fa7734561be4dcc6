// How surprised the memories of a model that learns while it reads were by each token of a text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/tokenizer.h"
#include "lab/token_view.h"
#include "layers/learning_memory.h"
#include "model/model.h"

namespace pronghorn::lab {

struct TokenSurprise {
  int32_t id = 0;
  std::string bytes;
  std::vector<double> memories;  // fast_weight_memory_surprise of each of learning_memories()
  double mean() const;           // of these; 0 for a token that reached none
};

// The memories in the layers of a model that learn while a sequence is read, in their order.
std::vector<LearningMemory> learning_memories(const Model& model);

// Reads the text as a prompt. Throws Error if it gives no token or the model has no memory that
// learns.
std::vector<TokenSurprise> read_surprise(const Model& model, const Tokenizer& tokenizer,
                                         std::string_view text);

// Strength: the mean surprise as a share of that of the most surprising twentieth of the tokens.
TokenView surprise_view(const std::vector<TokenSurprise>& tokens);

}  // namespace pronghorn::lab
