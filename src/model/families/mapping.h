// Helpers for family mappings: renaming by table, and looking at configurations.
#pragma once

#include <span>
#include <string>
#include <utility>

#include "model/config.h"

namespace pronghorn {

// "layers.7.mixer.q_proj.weight" -> {"layers.7.", "mixer.q_proj.weight"}; a name outside the layers
// -> {"", name}.
std::pair<std::string, std::string> split_layer_name(const std::string& name);

// The first rule whose left side starts `name` replaces it by its right side.
std::string rename_prefix(const std::string& name,
                          std::span<const std::pair<std::string, std::string>> rules);

// The block that all layers consist of and its single mixer of type `mixer`, or null: most
// published families repeat one block.
const BlockConfig* uniform_block(const ModelConfig& config, std::string_view mixer);

// Names of the Mamba families: backbone.layers.N.mixer..., backbone.norm_f.
std::string backbone_name(const std::string& name);

// The rest of a Mamba family's configuration, whose own keys have been read into `mixer`: what the
// families share, the sizes, and that nothing else is there. tied: default of tie_word_embeddings.
ModelConfig read_backbone(ConfigReader reader, nlohmann::json mixer, int64_t hidden_size,
                          bool tied);

// The keys that the configurations of the Mamba families share.
nlohmann::json write_backbone(const ModelConfig& config, const nlohmann::json& mixer);

// Keys that other tools write into config.json and that change nothing in the computation.
void ignore_common_keys(ConfigReader& reader);

// A configuration of `layers` times the same block, through the checks of our own format.
ModelConfig uniform_config(const ConfigReader& reader, nlohmann::json settings,
                           nlohmann::json block, int64_t layers);

}  // namespace pronghorn
