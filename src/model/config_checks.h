// What parts of a configuration must agree in that no part of it sees.
#pragma once

#include "formats/json.h"
#include "model/config.h"

namespace pronghorn {

// Throws Error unless each layer with `keys_from` has one with that `keys_to` before it, of the
// same type, heads of keys and values, window and positions, and in the same subsampled span.
// blocks: the object that the blocks were read from.
void check_shared_keys(const ModelConfig& config, const ConfigReader& blocks);

// Throws Error for prefix_tokens beside parts that go by rows or positions of their own. reader: of
// the model.
void check_prefix(const ModelConfig& config, const ConfigReader& reader);

}  // namespace pronghorn
