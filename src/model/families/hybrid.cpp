#include "model/families/hybrid.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "model/families/backbone.h"

namespace pronghorn {
namespace {

bool is_attention(const nlohmann::json& kind) {
  return kind == "full_attention" || kind == "attention";
}

}  // namespace

std::vector<bool> read_attention_layers(ConfigReader& reader, const std::string& key,
                                        int64_t layers,
                                        std::initializer_list<std::string_view> others,
                                        const std::function<bool(int64_t)>& fallback) {
  std::vector<bool> attention;
  if (!reader.has(key)) {
    reader.ignore(key);
    for (int64_t i = 0; i < layers; ++i) attention.push_back(fallback(i));
    return attention;
  }
  const nlohmann::json& kinds = reader.raw(key);
  require(kinds.is_array() && std::ssize(kinds) == layers, reader.path(key),
          "must be a list with one entry for each of {} layers", layers);
  for (const nlohmann::json& kind : kinds) {
    attention.push_back(is_attention(kind));
    const auto is_kind = [&](std::string_view other) { return kind == other; };
    require(attention.back() || std::ranges::any_of(others, is_kind), reader.path(key),
            "{} is neither \"full_attention\" nor \"{}\"", kind.dump(),
            fmt::join(others, "\" nor \""));
  }
  return attention;
}

ModelConfig HybridDecoder::finish(const ConfigReader& reader) const {
  return decoder.finish(reader, [&](int64_t layer, nlohmann::json& mixer) {
    if (!attention[static_cast<size_t>(layer)]) mixer = other;
  });
}

bool lists(const nlohmann::json& numbers, int64_t layer) {
  return numbers.is_array() && std::find(numbers.begin(), numbers.end(), layer) != numbers.end();
}

std::vector<const BlockConfig*> layers_with(const std::vector<const BlockConfig*>& layers,
                                            std::string_view mixer) {
  std::vector<const BlockConfig*> with;
  for (const BlockConfig* layer : layers) {
    if (layer->mixers.size() == 1 && layer->mixers.front().at("type") == mixer) {
      with.push_back(layer);
    }
  }
  return with;
}

std::vector<const BlockConfig*> hybrid_layers(const ModelConfig& config, std::string_view mixer) {
  const std::vector<const BlockConfig*> layers = layer_blocks(config);
  for (const BlockConfig* layer : layers) {
    if (layer->mixers.size() != 1 || !is_decoder_ffn(layer->feed_forward)) return {};
    const nlohmann::json& type = layer->mixers.front().at("type");
    if (type != "attention" && type != mixer) return {};
  }
  if (layers_with(layers, "attention").empty()) return {};
  return layers;
}

nlohmann::json write_layer_kinds(const std::vector<const BlockConfig*>& layers,
                                 const std::string& other) {
  nlohmann::json kinds = nlohmann::json::array();
  for (const BlockConfig* layer : layers) {
    const bool attention = layer->mixers.front().at("type") == "attention";
    kinds.push_back(attention ? "full_attention" : other);
  }
  return kinds;
}

std::vector<TensorRule> mixer_rules(const ModelConfig& config, const std::string& prefix,
                                    const std::vector<MixerTensors>& mixers) {
  std::vector<TensorRule> rules;
  int64_t number = 0;
  for (const BlockConfig* block : layer_blocks(config)) {
    for (size_t i = 0; i < block->mixers.size(); ++i) {
      const std::string type = block->mixers[i].at("type");
      const auto known = std::ranges::find(mixers, type, &MixerTensors::type);
      if (known == mixers.end()) continue;
      const std::string ours = fmt::format(
          "layers.{}.{}.", number,
          block->mixers.size() > 1 ? fmt::format("mixers.{}", i) : std::string("mixer"));
      const bool named = !known->published.empty();
      const std::string theirs =
          fmt::format("{}.{}.{}{}", prefix, number, known->published, named ? "." : "");
      for (TensorRule rule : known->rules) {
        for (std::string& name : rule.ours) name.insert(0, ours);
        for (std::string& name : rule.published) name.insert(0, theirs);
        rules.push_back(std::move(rule));
      }
      if (named) rules.push_back({{ours + "*"}, {theirs + "*"}, {}});
    }
    ++number;
  }
  return rules;
}

nlohmann::json read_mamba2_mixer(ConfigReader& reader, int64_t hidden_size, int64_t inner) {
  const int64_t heads = reader.integer("mamba_n_heads", 128, 1, 1 << 20);
  const int64_t expand = reader.integer("mamba_expand", 2, 1, 1 << 10);
  if (inner == 0) inner = expand * hidden_size;
  require(inner % heads == 0, reader.path("mamba_n_heads"), "{} does not divide {} channels", heads,
          inner);
  const nlohmann::json& head_dim = reader.raw("mamba_d_head");
  require(head_dim.is_null() || head_dim == "auto" || head_dim == inner / heads,
          reader.path("mamba_d_head"), "{} heads of {} are not {} channels", heads, head_dim.dump(),
          inner);
  nlohmann::json mixer = {{"type", "mamba2"},
                          {"heads", heads},
                          {"head_dim", inner / heads},
                          {"groups", reader.integer("mamba_n_groups", 1, 1)},
                          {"state", reader.integer("mamba_d_state", 256, 1)},
                          {"conv_kernel", reader.integer("mamba_d_conv", 4, 1)},
                          {"conv_bias", reader.boolean("mamba_conv_bias", true)},
                          {"bias", reader.boolean("mamba_proj_bias", false)}};
  if (reader.has("time_step_limit")) {
    mixer["time_step_limit"] = time_step_limit(reader.raw("time_step_limit"));
  }
  reader.ignore("time_step_limit");
  reader.ignore("mamba_chunk_size");
  return mixer;
}

nlohmann::json write_mamba2_mixer(const ModelConfig& config, const nlohmann::json& mixer) {
  const int64_t heads = mixer.at("heads"), head_dim = mixer.at("head_dim");
  nlohmann::json json = {{"mamba_n_heads", heads},
                         {"mamba_d_head", head_dim},
                         {"mamba_n_groups", mixer.at("groups")},
                         {"mamba_d_state", mixer.at("state")},
                         {"mamba_d_conv", mixer.at("conv_kernel")},
                         {"mamba_expand", heads * head_dim / config.hidden_size},
                         {"mamba_conv_bias", mixer.at("conv_bias")},
                         {"mamba_proj_bias", mixer.at("bias")}};
  // The reference reads an absent limit as (0, infinity), which JSON cannot spell.
  if (!mixer.at("time_step_limit").at(1).is_null()) {
    json["time_step_limit"] = mixer.at("time_step_limit");
  }
  return json;
}

nlohmann::json write_delta_net(const nlohmann::json& mixer) {
  return {{"linear_num_key_heads", mixer.at("heads")},
          {"linear_num_value_heads", mixer.at("value_heads")},
          {"linear_key_head_dim", mixer.at("head_dim")},
          {"linear_value_head_dim", mixer.at("value_head_dim")},
          {"linear_conv_kernel_dim", mixer.at("conv_kernel")}};
}

TensorRules mamba_hybrid_tensors(const ModelConfig& config, const std::string& mamba) {
  const std::string layer = "layers.*.", theirs = "model.layers.*.";
  TensorRules tensors;
  tensors.rules =
      mixer_rules(config, "model.layers",
                  {{"attention", "self_attn", {}}, {mamba, "mamba", {convolution_rule()}}});
  const std::vector<TensorRule> rest = {
      {{"embeddings.weight"}, {"model.embed_tokens.weight"}, {}},
      {{layer + "mixer_norm.*"}, {theirs + "input_layernorm.*"}, {}},
      {{layer + "ffn_norm.*"}, {theirs + "pre_ff_layernorm.*"}, {}},
      {{layer + "ffn.*"}, {theirs + "feed_forward.*"}, {}},
      {{"norm.*"}, {"model.final_layernorm.*"}, {}},
      {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  tensors.rules.insert(tensors.rules.end(), rest.begin(), rest.end());
  tensors.passed_over = tied_head(config, "lm_head.weight");
  return tensors;
}

bool heads_share_width(const ModelConfig& config, const nlohmann::json& attention) {
  return attention.at("head_dim") == config.hidden_size / attention.at("heads").get<int64_t>();
}

int64_t head_dim(const Decoder& decoder) {
  const int64_t shared =
      decoder.settings.at("hidden_size").get<int64_t>() / decoder.mixer.at("heads").get<int64_t>();
  return decoder.mixer.value("head_dim", shared);
}

TensorRule convolution_rule(const std::string& name) {
  return {{name}, {name}, transforms::squeeze(1)};
}

}  // namespace pronghorn
