// Longer contexts: rotary positions scaled so that a model that was trained for some can learn more
// of them in a few steps.
#pragma once

#include <cstdint>
#include <string>

#include "model/config.h"

namespace pronghorn {

struct ExtendOptions {
  int64_t context = 0;   // tokens that the model is to read
  int64_t original = 0;  // those that it was first trained for; 0: what its configuration says
  // "yarn" (arXiv 2309.00071), "linear" (2306.15595), or "ntk", a larger base of all angles.
  std::string scaling = "yarn";
};

// The configuration with the rotary positions of all layers that see everything before them scaled
// by context / original: layers with windows or segments never meet other distances than those that
// they know. Parameters stay the same. Throws Error where the original context is not known or not
// shorter, nothing is scaled, positions are scaled in another way already, and for learned
// positions and models that fill in masked tokens.
ModelConfig extended_config(const ModelConfig& config, const ExtendOptions& options);

}  // namespace pronghorn
