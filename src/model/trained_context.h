// What is said of a text that goes beyond the context that its model was trained for.
#pragma once

#include <cstdint>
#include <string>

#include "model/model.h"

namespace pronghorn {

// What is done about a text that goes beyond the trained context.
enum class ContextLimit : uint8_t { ignore, warn, error };

// Whether a sequence's state takes more memory with every token, however many there are: attention
// without a window does, and looks at positions that nobody has trained.
bool state_grows(const Model& model);

// Tokens of the longest text that the model has positions for; the largest number: it has no end.
int64_t position_limit(const Model& model);

// "2048 tokens", "131072 tokens, by rotary positions scaled from 8192", "not known", and how far
// beyond it a model may go whose state does not grow.
std::string trained_context_text(const Model& model);

// To be called with the length that a text has, or is about to have. Beyond the trained context, if
// that is known, it warns once, or throws Error.
void check_context(const Model& model, int64_t tokens, ContextLimit limit);

}  // namespace pronghorn
