// What the files of the family nemotron_h share.
#pragma once

#include "model/gguf_format.h"

namespace pronghorn {

namespace nemotron_h_keys {
constexpr const char *kExperts = "n_routed_experts", *kPredictors = "num_nextn_predict_layers";
constexpr int64_t kMostPredictors = 8;
}  // namespace nemotron_h_keys

const GgufFormat& nemotron_h_gguf();

}  // namespace pronghorn
