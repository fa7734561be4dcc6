// What Granite's families share: factors on embeddings, scores of attention, what layers add to the
// stream, and the scores of the model.
#pragma once

#include <vector>

#include "model/families/decoder.h"
#include "model/gguf_format.h"

namespace pronghorn {

// attention_multiplier, residual_multiplier, embedding_multiplier and logits_scaling.
void read_granite_factors(ConfigReader& reader, Decoder& decoder);
nlohmann::json write_granite_factors(const ModelConfig& config, const BlockConfig& block);

// The keys of these factors in GGUF files; and what read_gguf() of the dense family does.
std::vector<GgufKey> gguf_granite_keys();
void read_gguf_granite(const GgufModel& file, nlohmann::json& config);
// The scale of scores that files mean that do not say it.
void read_gguf_granite_scale(nlohmann::json& config);

// Rules for experts and their router, for a model that has some: the matrices of a layer's experts
// are in one tensor.
std::vector<TensorRule> granite_expert_rules(const ModelConfig& config);

}  // namespace pronghorn
