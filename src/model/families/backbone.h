// What the Mamba families share: one kind of mixer in every layer, and the names of their tensors.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/families/mapping.h"
#include "model/gguf_format.h"
#include "model/tensor_rules.h"

namespace pronghorn {

// The rest of a Mamba family's configuration, whose own keys have been read into `mixer`: what the
// families share, the sizes, and that nothing else is there. tied: default of tie_word_embeddings.
ModelConfig read_backbone(ConfigReader reader, nlohmann::json mixer, int64_t hidden_size,
                          bool tied);

// The keys that the configurations of the Mamba families share.
nlohmann::json write_backbone(const ModelConfig& config, const nlohmann::json& mixer);

// A family of Mamba's. mixer: what its mixers have besides.
ModelConfig read_mamba_backbone(ConfigReader reader, nlohmann::json mixer);
std::optional<nlohmann::json> write_mamba_backbone(const ModelConfig& config,
                                                   const std::string& model_type,
                                                   const std::string& architecture);

// Mamba-2's limits of step sizes as ours: infinity is null. Python's json writes it as a bare word
// (which read_config_json makes a string), newer versions of transformers as an object.
nlohmann::json time_step_limit(nlohmann::json published);

TensorRules backbone_tensors(const ModelConfig& config);

// GGUF files of these families: keys, some of which say nothing of such a model, and what the keys
// do not say.
std::vector<GgufKey> backbone_gguf_keys(const std::vector<GgufKey>& more);
std::vector<std::string_view> backbone_gguf_other_keys();
void read_backbone_gguf(const GgufModel& file, nlohmann::json& config);
void write_backbone_gguf(const nlohmann::json& json, GgufModel& file);

// Those of Mamba's. inner_norms: of step sizes, B and C.
GgufFormat mamba_gguf(bool inner_norms);

}  // namespace pronghorn
