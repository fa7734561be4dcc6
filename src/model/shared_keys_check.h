// Which layers read the keys and values of which, in a whole model (layers/shared_keys.h).
#pragma once

#include "formats/json.h"
#include "model/config.h"

namespace pronghorn {

// Throws Error unless each layer with `keys_from` has one with that `keys_to` before it, of the
// same type, heads of keys and values, window and positions, and in the same subsampled span.
// blocks: the object that the blocks were read from.
void check_shared_keys(const ModelConfig& config, const ConfigReader& blocks);

}  // namespace pronghorn
