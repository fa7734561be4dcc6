// What the families share whose layers are of several kinds: attention, or a recurrence or
// convolution, or both.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "model/families/decoder.h"

namespace pronghorn {

// Which layers are attention: `key` is a list of "full_attention" or "attention" and `others`, one
// for each layer; absent: fallback(layer).
std::vector<bool> read_attention_layers(ConfigReader& reader, const std::string& key,
                                        int64_t layers,
                                        std::initializer_list<std::string_view> others,
                                        const std::function<bool(int64_t)>& fallback);

// A decoder some of whose layers have another mixer in place of attention.
struct HybridDecoder {
  Decoder decoder;              // its mixer: attention
  nlohmann::json other;         // the mixer of the other layers
  std::vector<bool> attention;  // of each layer

  // decoder.finish() with both mixers.
  ModelConfig finish(const ConfigReader& reader) const;
};

// Whether a list of numbers of layers has this one; null: it is empty.
bool lists(const nlohmann::json& numbers, int64_t layer);

// A model whose layers each have one mixer, attention or `mixer`, and a feed-forward that a decoder
// may have; empty if it is of another kind or has no attention.
std::vector<const BlockConfig*> hybrid_layers(const ModelConfig& config, std::string_view mixer);

// Those of them whose only mixer is of this type.
std::vector<const BlockConfig*> layers_with(const std::vector<const BlockConfig*>& layers,
                                            std::string_view mixer);

// layer_types, or such a list: "full_attention" for attention, `other` for the rest.
nlohmann::json write_layer_kinds(const std::vector<const BlockConfig*>& layers,
                                 const std::string& other);

// A mixer of this type under its published name; empty: it has none, and all of its tensors have
// rules. Rules of its tensors, without the names in front on either side, go before renaming.
struct MixerTensors {
  std::string type, published;
  std::vector<TensorRule> rules;
};

// Rules for the tensors of all mixers, layer by layer: theirs are "prefix.LAYER.published.NAME".
std::vector<TensorRule> mixer_rules(const ModelConfig& config, const std::string& prefix,
                                    const std::vector<MixerTensors>& mixers);

// Those of Mamba-2 as the hybrids have it: mamba_n_heads and so on. Absent sizes are those of the
// reference. inner: channels; 0: mamba_expand x hidden_size.
nlohmann::json read_mamba2_mixer(ConfigReader& reader, int64_t hidden_size, int64_t inner = 0);
nlohmann::json write_mamba2_mixer(const ModelConfig& config, const nlohmann::json& mixer);

// The keys of Gated DeltaNet that its families share: linear_num_key_heads and so on.
nlohmann::json write_delta_net(const nlohmann::json& mixer);

// The tensors of Bamba, Falcon-H1 and Jamba, whose attention is beside mixers of type `mamba`.
TensorRules mamba_hybrid_tensors(const ModelConfig& config, const std::string& mamba);

// Whether heads of attention share the width of the model, for families that have no key for the
// width of a head.
bool heads_share_width(const ModelConfig& config, const nlohmann::json& attention);

// Width of a head of attention.
int64_t head_dim(const Decoder& decoder);

// The convolution's taps, published as [channels, 1, taps].
TensorRule convolution_rule(const std::string& name = "conv1d.weight");

}  // namespace pronghorn
