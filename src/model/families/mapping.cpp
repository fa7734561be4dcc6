#include "model/families/mapping.h"

#include <set>

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

ModelConfig uniform_config(const ConfigReader& reader, nlohmann::json settings,
                           nlohmann::json block, int64_t layers) {
  settings["pattern"] = std::to_string(layers) + "a";
  settings["blocks"] = {{"a", std::move(block)}};
  return read_pronghorn_config(ConfigReader(std::move(settings), reader.where()));
}

}  // namespace pronghorn
