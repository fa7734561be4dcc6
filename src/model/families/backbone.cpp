#include "model/families/backbone.h"

#include <cmath>
#include <utility>

#include "model/families/published_keys.h"

namespace pronghorn {

ModelConfig read_backbone(ConfigReader reader, nlohmann::json mixer, int64_t hidden_size,
                          bool tied) {
  mixer["conv_kernel"] = reader.integer("conv_kernel", 4, 1);
  mixer["bias"] = reader.boolean("use_bias", false);
  mixer["conv_bias"] = reader.boolean("use_conv_bias", true);
  mixer["time_step_min"] = reader.number("time_step_min", 0.001);
  mixer["time_step_max"] = reader.number("time_step_max", 0.1);
  mixer["time_step_floor"] = reader.number("time_step_floor", 1e-4);
  reader.one_of("hidden_act", {"silu"}, "silu");
  nlohmann::json settings = {
      {"vocab_size", reader.integer("vocab_size", {}, 1)},
      {"hidden_size", hidden_size},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", tied)},
      {"norm", {{"type", "rms_norm"}, {"epsilon", reader.number("layer_norm_epsilon", 1e-5, 0)}}}};
  const int64_t layers = reader.integer("num_hidden_layers", {}, 1, kMaxBlocks);
  read_trained_context(reader, settings);
  finish_published(reader);
  const nlohmann::json layer = {{"mixer", std::move(mixer)}};
  return uniform_config(reader, settings, layer, layers);
}

nlohmann::json write_backbone(const ModelConfig& config, const nlohmann::json& mixer) {
  nlohmann::json json = {{"vocab_size", config.vocab_size},
                         {"hidden_size", config.hidden_size},
                         {"num_hidden_layers", config.block_count()},
                         {"state_size", mixer.at("state")},
                         {"conv_kernel", mixer.at("conv_kernel")},
                         {"time_step_min", mixer.at("time_step_min")},
                         {"time_step_max", mixer.at("time_step_max")},
                         {"time_step_floor", mixer.at("time_step_floor")},
                         {"use_bias", mixer.at("bias")},
                         {"use_conv_bias", mixer.at("conv_bias")},
                         {"hidden_act", "silu"},
                         {"layer_norm_epsilon", config.norm_epsilon},
                         {"tie_word_embeddings", config.tie_embeddings},
                         {"torch_dtype", "float32"}};
  json.update(write_trained_context(config));
  return json;
}

ModelConfig read_mamba_backbone(ConfigReader reader, nlohmann::json mixer) {
  const int64_t hidden = reader.integer("hidden_size", {}, 1, 1 << 17);
  const double expand = reader.number("expand", 2.0, 0.0625, 64);
  mixer["type"] = "mamba";
  mixer["inner_size"] =
      reader.integer("intermediate_size", std::llround(expand * static_cast<double>(hidden)), 1);
  mixer["state"] = reader.integer("state_size", 16, 1);
  read_time_step_rank(reader, "time_step_rank", mixer);
  return read_backbone(std::move(reader), std::move(mixer), hidden, true);
}

std::optional<nlohmann::json> write_mamba_backbone(const ModelConfig& config,
                                                   const std::string& model_type,
                                                   const std::string& architecture) {
  const BlockConfig* block = uniform_block(config, "mamba");
  if (block == nullptr) return {};
  const nlohmann::json& mixer = block->mixers.front();
  // The families derive the inner size from a whole expansion factor.
  const int64_t inner = mixer.at("inner_size");
  if (inner % config.hidden_size != 0) return {};
  nlohmann::json json = {{"model_type", model_type},
                         {"architectures", {architecture}},
                         {"intermediate_size", inner},
                         {"expand", inner / config.hidden_size},
                         {"time_step_rank", mixer.at("time_step_rank")}};
  json.update(write_backbone(config, mixer));
  return json;
}

nlohmann::json time_step_limit(nlohmann::json published) {
  if (published.is_array() && published.size() == 2 &&
      (published[1] == "Infinity" || published[1] == nlohmann::json{{"__float__", "Infinity"}})) {
    published[1] = nullptr;
  }
  return published;
}

TensorRules backbone_tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "backbone.layers.*.";
  return {
      {{{"embeddings.weight"}, {"backbone.embeddings.weight"}, {}},
       {{layer + "mixer_norm.*"}, {theirs + "norm.*"}, {}},
       // Depthwise convolutions are published as [channels, 1, taps].
       {{layer + "mixer.conv1d.weight"}, {theirs + "mixer.conv1d.weight"}, transforms::squeeze(1)},
       {{layer + "mixer.*"}, {theirs + "mixer.*"}, {}},
       {{"norm.*"}, {"backbone.norm_f.*"}, {}},
       {{"lm_head.weight"}, {"lm_head.weight"}, {}}},
      tied_head(config, "lm_head.weight")};
}

}  // namespace pronghorn
