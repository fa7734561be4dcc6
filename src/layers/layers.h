// The layers there are. A new one is a file beside these, a line here and one in registry.cpp,
// among those of its kind.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "layers/fields.h"
#include "layers/layer.h"

namespace pronghorn {

// The type of a layer's class, which has
//   Config, a struct with fields() (see fields.h), and a constructor
//   (const Config&, const LayerContext&, const ParameterScope&, const StateScope&).
template <class Layer, class Base>
LayerType<Base> layer_type(std::string name, std::string description, std::string paper,
                           std::string example) {
  using Config = typename Layer::Config;
  LayerType<Base> type;
  type.name = std::move(name);
  type.description = std::move(description);
  type.paper = std::move(paper);
  type.example = std::move(example);
  type.complete = [](ConfigReader reader, const LayerContext& context) {
    ConfigFields fields(std::move(reader));
    Config().fields(fields, context);
    return fields.finish();
  };
  type.create = [](const nlohmann::json& json, const LayerContext& context,
                   const ParameterScope& scope, const StateScope& states) -> std::unique_ptr<Base> {
    ConfigFields fields(ConfigReader(json, json.at("type").get<std::string>()));
    Config config;
    config.fields(fields, context);
    return std::make_unique<Layer>(config, context, scope, states);
  };
  type.describe = [](ConfigReader reader, const LayerContext& context) {
    ConfigFields fields(std::move(reader));
    Config().fields(fields, context);
    return fields.descriptions();
  };
  return type;
}

template <class Layer>
MixerType mixer_type(std::string name, std::string description, std::string paper,
                     std::string example) {
  return layer_type<Layer, Mixer>(std::move(name), std::move(description), std::move(paper),
                                  std::move(example));
}

template <class Layer>
FeedForwardType feed_forward_type(std::string name, std::string description, std::string paper,
                                  std::string example) {
  return layer_type<Layer, FeedForward>(std::move(name), std::move(description), std::move(paper),
                                        std::move(example));
}

MixerType attention_mixer_type();
MixerType mamba_mixer_type();
MixerType mamba2_mixer_type();
MixerType mamba3_mixer_type();
MixerType gated_deltanet_mixer_type();
MixerType short_conv_mixer_type();
MixerType rg_lru_mixer_type();
MixerType s4d_mixer_type();
MixerType mega_mixer_type();
MixerType megalodon_mixer_type();
MixerType mla_mixer_type();
MixerType dsa_mixer_type();
MixerType transformer_xl_mixer_type();
MixerType infini_mixer_type();
MixerType longformer_mixer_type();
MixerType bigbird_mixer_type();
MixerType moba_mixer_type();
MixerType nsa_mixer_type();
MixerType hymba_mixer_type();
MixerType linear_attention_mixer_type();
MixerType retnet_mixer_type();
MixerType lightning_mixer_type();
MixerType gla_mixer_type();
MixerType hgrn_mixer_type();
MixerType hgrn2_mixer_type();
MixerType delta_net_mixer_type();
MixerType kda_mixer_type();
MixerType mlstm_mixer_type();
MixerType ttt_linear_mixer_type();
MixerType ttt_mlp_mixer_type();
MixerType titans_memory_mixer_type();
MixerType titans_mac_mixer_type();
MixerType titans_mag_mixer_type();
MixerType titans_mal_mixer_type();
MixerType rwkv6_mixer_type();
MixerType rwkv7_mixer_type();

FeedForwardType swiglu_type();
FeedForwardType gelu_type();
FeedForwardType glu_type();
FeedForwardType mlp_type();
FeedForwardType moe_type();
FeedForwardType channel_mix_type();

}  // namespace pronghorn
