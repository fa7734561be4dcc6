// What reading a fresh text costs per token: what Model::cost() says of one token, for all of them.
#pragma once

#include "model/model.h"

namespace pronghorn {

// Forward work on the rows of the model's prefix, for each of `tokens` tokens of a fresh text; none
// without a prefix. What these few rows see of one another is omitted.
TokenCost prefix_cost(const Model& model, double tokens);

// Forward work of a token of a fresh text, on average: that of the one in the middle, head
// included, and its share of the prefix.
TokenCost text_cost(const Model& model, double tokens);

}  // namespace pronghorn
