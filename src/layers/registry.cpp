#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/quote.h"
#include "layers/layer.h"
#include "layers/layers.h"

namespace pronghorn {
namespace {

template <typename Type>
const Type& find_type(const std::vector<Type>& types, std::string_view name, std::string_view what,
                      std::string_view where) {
  std::vector<std::string> names;
  for (const Type& type : types) {
    if (type.name == name) return type;
    names.push_back(type.name);
  }
  throw Error(where, fmt::format("unknown {} type {}", what, quote(name)),
              fmt::format("choose from {}", fmt::join(names, ", ")));
}

// The mixers there are, by what they keep of a sequence and how they change it.
struct Kind {
  const char* name;
  std::vector<MixerType (*)()> makers;
};

std::vector<MixerType>& mixers() {
  static std::vector<MixerType> types = [] {
    const std::vector<Kind> kinds = {
        {"softmax attention",
         {attention_mixer_type, mla_mixer_type, transformer_xl_mixer_type, infini_mixer_type}},
        {"sparse attention",
         {longformer_mixer_type, bigbird_mixer_type, moba_mixer_type, nsa_mixer_type,
          dsa_mixer_type}},
        {"linear attention",
         {linear_attention_mixer_type, retnet_mixer_type, lightning_mixer_type, gla_mixer_type,
          hgrn2_mixer_type, rwkv6_mixer_type, mlstm_mixer_type}},
        {"delta rule",
         {delta_net_mixer_type, gated_deltanet_mixer_type, kda_mixer_type, rwkv7_mixer_type}},
        {"state space",
         {mamba_mixer_type, mamba2_mixer_type, mamba3_mixer_type, s4d_mixer_type, rg_lru_mixer_type,
          hgrn_mixer_type}},
        {"test-time memory",
         {ttt_linear_mixer_type, ttt_mlp_mixer_type, titans_memory_mixer_type,
          titans_mac_mixer_type, titans_mag_mixer_type, titans_mal_mixer_type}},
        {"convolution", {short_conv_mixer_type}},
        // Attention and a recurrence in one layer.
        {"hybrid", {hymba_mixer_type, mega_mixer_type, megalodon_mixer_type}},
    };
    std::vector<MixerType> all;
    for (const Kind& kind : kinds) {
      for (const auto make : kind.makers) {
        all.push_back(make());
        all.back().kind = kind.name;
      }
    }
    return all;
  }();
  return types;
}

std::vector<FeedForwardType>& feed_forwards() {
  static std::vector<FeedForwardType> types = {swiglu_type(), gelu_type(), glu_type(),
                                               mlp_type(),    moe_type(),  channel_mix_type()};
  return types;
}

template <typename Layer>
std::vector<FieldDescription> describe_example(const LayerType<Layer>& type) {
  LayerContext context;
  context.hidden_size = 24;
  return type.describe(ConfigReader(parse_json(type.example, type.name), type.name), context);
}

template <typename Type>
void add_type(std::vector<Type>& types, Type type) {
  for (const Type& other : types) {
    require(other.name != type.name, type.name, "is the name of two layer types");
  }
  types.push_back(std::move(type));
}

}  // namespace

const std::vector<MixerType>& mixer_types() { return mixers(); }
const std::vector<FeedForwardType>& feed_forward_types() { return feed_forwards(); }

void register_mixer_type(MixerType type) { add_type(mixers(), std::move(type)); }
void register_feed_forward_type(FeedForwardType type) {
  add_type(feed_forwards(), std::move(type));
}

std::vector<FieldDescription> describe(const MixerType& type) { return describe_example(type); }
std::vector<FieldDescription> describe(const FeedForwardType& type) {
  return describe_example(type);
}

const MixerType& find_mixer_type(std::string_view name, std::string_view where) {
  return find_type(mixer_types(), name, "mixer", where);
}

const FeedForwardType& find_feed_forward_type(std::string_view name, std::string_view where) {
  return find_type(feed_forward_types(), name, "feed-forward", where);
}

}  // namespace pronghorn
