// Helpers of families: looking at configurations, and making ours layer by layer.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace pronghorn {

// The blocks of all layers in order; empty if there is more than blocks (subsampled spans), for
// which no published family has a place.
std::vector<const BlockConfig*> layer_blocks(const ModelConfig& config);

// The block that all layers consist of and its single mixer of type `mixer`, or null: many
// published families repeat one block.
const BlockConfig* uniform_block(const ModelConfig& config, std::string_view mixer);

// The mixers of one type in the layers, in order.
std::vector<const nlohmann::json*> mixers_of(const ModelConfig& config, std::string_view type);

// A configuration of these blocks, {"mixer": .., "ffn": ..}, one per layer, through the checks of
// our own format: equal blocks get one letter, and the pattern says how they follow one another.
// settings: the other keys.
ModelConfig layered_config(const ConfigReader& reader, nlohmann::json settings,
                           const std::vector<nlohmann::json>& layers);

// The same of a model whose layers are all alike.
ModelConfig uniform_config(const ConfigReader& reader, nlohmann::json settings,
                           const nlohmann::json& layer, int64_t layers);

// Puts what a published file says of the context that its model was trained for into `settings` of
// layered_config(): max_position_embeddings or its other names, and rope_scaling's
// original_max_position_embeddings and factor. It marks no key as read.
void read_trained_context(const ConfigReader& reader, nlohmann::json& settings);

// The same as keys of a published file: max_position_embeddings, if anybody knows it.
nlohmann::json write_trained_context(const ModelConfig& config);

// x such that 1 / x is `factor`, a plain one if there are several: for families that divide.
double divisor_of(double factor);

// Whether the key is there and its value is null, which ConfigReader takes for absent.
bool is_null(ConfigReader& reader, const std::string& key);

// The rank of Mamba's step sizes under `key`, as "time_step_rank" of `mixer`; absent or "auto": the
// layer's own default. Throws Error for what is neither.
void read_time_step_rank(ConfigReader& reader, const std::string& key, nlohmann::json& mixer);

// The published name of the output head as a list, if the model does without: some tools store a
// tied head all the same.
std::vector<std::string> tied_head(const ModelConfig& config, std::string name);

}  // namespace pronghorn
