// Sizes of heads of attention in GGUF files.
#pragma once

#include <cstdint>

#include "model/gguf_format.h"

namespace pronghorn {

// Throws Error unless values are as wide as keys, where a file says how wide they are.
void check_gguf_value_length(const GgufModel& file, int64_t head_dim);

}  // namespace pronghorn
