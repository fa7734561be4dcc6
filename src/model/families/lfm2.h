// What the LFM2 families share: short convolutions between gates, and attention in some layers.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/families/hybrid.h"
#include "model/gguf_format.h"

namespace pronghorn {

// size: of a feed-forward.
HybridDecoder read_lfm2(ConfigReader& reader, int64_t size);

// The keys of such a model; nothing if it is of another kind, or has one kind of layers only.
std::optional<nlohmann::json> write_lfm2(const ModelConfig& config, const std::string& model_type,
                                         const std::string& architecture);

TensorRules lfm2_tensors(const ModelConfig& config);

// GGUF files.
std::vector<GgufKey> lfm2_gguf_keys(const std::vector<GgufKey>& more);
void read_lfm2_gguf(const GgufModel& file, nlohmann::json& config);
void write_lfm2_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file);
TensorRules lfm2_gguf_tensors(const ModelConfig& config);

}  // namespace pronghorn
