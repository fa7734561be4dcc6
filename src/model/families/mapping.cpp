#include "model/families/mapping.h"

#include <set>
#include <utility>

namespace pronghorn {

std::pair<std::string, std::string> split_layer_name(const std::string& name) {
  constexpr std::string_view kLayers = "layers.";
  if (!name.starts_with(kLayers)) return {"", name};
  const size_t dot = name.find('.', kLayers.size());
  if (dot == std::string::npos) return {"", name};
  return {name.substr(0, dot + 1), name.substr(dot + 1)};
}

std::string rename_prefix(const std::string& name,
                          std::span<const std::pair<std::string, std::string>> rules) {
  for (const auto& [from, to] : rules) {
    if (name.starts_with(from)) return to + name.substr(from.size());
  }
  return name;
}

const BlockConfig* uniform_block(const ModelConfig& config, std::string_view mixer) {
  std::set<char> used;
  for (const PatternStep& step : config.steps) {
    if (step.kind != PatternStep::Kind::block) return nullptr;
    used.insert(step.block);
  }
  if (used.size() != 1) return nullptr;
  const BlockConfig& block = config.blocks.at(*used.begin());
  if (block.mixers.size() != 1 || block.mixers.front().at("type") != mixer) return nullptr;
  return &block;
}

std::string backbone_name(const std::string& name) {
  if (name == "lm_head.weight") return name;
  if (name.starts_with("norm.")) return "backbone.norm_f." + name.substr(5);
  const auto [layer, rest] = split_layer_name(name);
  const bool norm = !layer.empty() && rest.starts_with("mixer_norm.");
  return "backbone." + layer + (norm ? rest.substr(6) : rest);
}

void ignore_common_keys(ConfigReader& reader) {
  for (const char* key :
       {"architectures", "torch_dtype", "dtype", "transformers_version", "bos_token_id",
        "eos_token_id", "pad_token_id", "use_cache", "_name_or_path", "model_type",
        "initializer_range", "rescale_prenorm_residual", "train"}) {
    reader.ignore(key);
  }
}

ModelConfig read_backbone(ConfigReader reader, nlohmann::json mixer, int64_t hidden_size,
                          bool tied) {
  mixer["conv_kernel"] = reader.integer("conv_kernel", 4, 1);
  mixer["bias"] = reader.boolean("use_bias", false);
  mixer["conv_bias"] = reader.boolean("use_conv_bias", true);
  mixer["time_step_min"] = reader.number("time_step_min", 0.001);
  mixer["time_step_max"] = reader.number("time_step_max", 0.1);
  mixer["time_step_floor"] = reader.number("time_step_floor", 1e-4);
  reader.one_of("hidden_act", {"silu"}, "silu");
  reader.ignore("residual_in_fp32");
  const nlohmann::json settings = {
      {"vocab_size", reader.integer("vocab_size", {}, 1)},
      {"hidden_size", hidden_size},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", tied)},
      {"norm", {{"type", "rms_norm"}, {"epsilon", reader.number("layer_norm_epsilon", 1e-5, 0)}}}};
  const int64_t layers = reader.integer("num_hidden_layers", {}, 1, kMaxBlocks);
  reader.finish();
  return uniform_config(reader, settings, {{"mixer", std::move(mixer)}}, layers);
}

nlohmann::json write_backbone(const ModelConfig& config, const nlohmann::json& mixer) {
  return {{"vocab_size", config.vocab_size},
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
}

ModelConfig uniform_config(const ConfigReader& reader, nlohmann::json settings,
                           nlohmann::json block, int64_t layers) {
  settings["pattern"] = std::to_string(layers) + "a";
  settings["blocks"] = {{"a", std::move(block)}};
  return read_pronghorn_config(ConfigReader(std::move(settings), reader.where()));
}

}  // namespace pronghorn
