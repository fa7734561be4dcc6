// The settings of the spans of a pattern, as JSON: "subsample" of a configuration.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>

#include "formats/json.h"
#include "layers/span_choice.h"

namespace pronghorn {

// spans: that the pattern has. hidden_size: of the model, from which on merged patches double.
// Throws Error for what ConfigReader refuses, keys of another kind of span, and shares, rates or
// widths that are none or too few.
SubsampleConfig read_subsample(ConfigReader reader, int64_t spans, int64_t hidden_size);

// The inverse, with all defaults spelled out.
nlohmann::json write_subsample(const SubsampleConfig& config);

}  // namespace pronghorn
