// The layers there are. A new one is a file beside these, a line here and one in registry.cpp.
#pragma once

#include <memory>

#include "layers/layer.h"

namespace pronghorn {

// MixerType::create of a mixer that is built from these four.
template <class MixerClass>
std::unique_ptr<Mixer> create_mixer(const nlohmann::json& config, const LayerContext& context,
                                    const ParameterScope& scope, const StateScope& states) {
  return std::make_unique<MixerClass>(config, context, scope, states);
}

MixerType attention_mixer_type();
MixerType mamba_mixer_type();
MixerType mamba2_mixer_type();
MixerType gated_deltanet_mixer_type();
MixerType ttt_linear_mixer_type();
MixerType ttt_mlp_mixer_type();
MixerType titans_memory_mixer_type();
MixerType titans_mac_mixer_type();
MixerType titans_mag_mixer_type();
MixerType titans_mal_mixer_type();

FeedForwardType swiglu_type();
FeedForwardType gelu_type();

}  // namespace pronghorn
