// What the files of the family nemotron_h share.
#pragma once

#include "model/gguf_format.h"

namespace pronghorn {

namespace nemotron_h_keys {
constexpr const char* kExperts = "n_routed_experts";
}

const GgufFormat& nemotron_h_gguf();

}  // namespace pronghorn
