// What the Gemma families share: norms on both sides of each part, published less 1; a scale of the
// scores of its own; embeddings times the root of their width.
#pragma once

#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"

namespace pronghorn {

// Both but for windows, positions and caps.
Decoder read_gemma(ConfigReader& reader, const DecoderDefaults& defaults);

// The keys that both have, for a model that has decoder_layers().
nlohmann::json write_gemma(const ModelConfig& config, const std::string& model_type,
                           const std::string& architecture);

TensorRules gemma_tensors(const ModelConfig& config);

// GGUF files: scores are scaled by the size of heads, but in the models of `largest` layers by the
// share of the width that a head would have; norms are whole; each `period`-th layer has no window.
void read_gemma_gguf(const GgufModel& file, int64_t largest, int64_t period,
                     nlohmann::json& config);
void write_gemma_gguf(const ModelConfig& config, const nlohmann::json& json, int64_t period,
                      GgufModel& file);
TensorRules gemma_gguf_tensors(const ModelConfig& config);
std::vector<GgufKey> gemma_gguf_keys(const GgufKey& own);
std::vector<std::string_view> gemma_gguf_other_keys();

// A cap of scores: `absent` without the key, 0 (none) for null.
double read_cap(ConfigReader& reader, const std::string& key, double absent);
nlohmann::json write_cap(double cap);

}  // namespace pronghorn
