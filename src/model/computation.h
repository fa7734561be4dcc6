// What a model computes, as far as its configuration says.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "model/config.h"

namespace pronghorn {

// What a computation depends on. Names of blocks, which published families do not keep, are not.
nlohmann::json computation(const ModelConfig& config);

// The first thing in which `other` computes otherwise than `config`, with the value that `config`
// has: "layers.0.mixer.window = 16"; empty: nowhere. Numbers may differ as far as f32 rounds them,
// and rotary positions are compared by their angles, however a scaling spells them.
std::string computes_otherwise(const ModelConfig& config, const ModelConfig& other);

}  // namespace pronghorn
