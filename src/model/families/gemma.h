// What the Gemma families share: norms on both sides of each part, published less 1; a scale of the
// scores of its own; embeddings times the root of their width.
#pragma once

#include "model/families/decoder.h"

namespace pronghorn {

// Both but for windows, positions and caps.
Decoder read_gemma(ConfigReader& reader, const DecoderDefaults& defaults);

// The keys that both have, for a model that has decoder_layers().
nlohmann::json write_gemma(const ModelConfig& config, const std::string& model_type,
                           const std::string& architecture);

TensorRules gemma_tensors(const ModelConfig& config);

// A cap of scores: `absent` without the key, 0 (none) for null.
double read_cap(ConfigReader& reader, const std::string& key, double absent);
nlohmann::json write_cap(double cap);

}  // namespace pronghorn
