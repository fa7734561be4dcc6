#include "model/families/mapping.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace pronghorn {

std::vector<const BlockConfig*> layer_blocks(const ModelConfig& config) {
  std::vector<const BlockConfig*> blocks;
  if (config.mtp.heads > 0) return {};
  for (const PatternStep& step : config.steps) {
    if (step.kind != PatternStep::Kind::block) return {};
    blocks.push_back(&config.blocks.at(step.block));
  }
  return blocks;
}

const BlockConfig* uniform_block(const ModelConfig& config, std::string_view mixer) {
  const std::vector<const BlockConfig*> blocks = layer_blocks(config);
  if (blocks.empty()) return nullptr;
  const BlockConfig* first = blocks.front();
  if (std::ranges::count(blocks, first) != std::ssize(blocks)) return nullptr;
  if (first->mixers.size() != 1 || first->mixers.front().at("type") != mixer) return nullptr;
  return first;
}

ModelConfig layered_config(const ConfigReader& reader, nlohmann::json settings,
                           const std::vector<nlohmann::json>& layers) {
  constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  std::vector<nlohmann::json> kinds;
  std::string letters;
  for (const nlohmann::json& layer : layers) {
    const auto kind = static_cast<size_t>(std::ranges::find(kinds, layer) - kinds.begin());
    require(kind < kLetters.size(), reader.where(), "more than {} kinds of layers",
            kLetters.size());
    if (kind == kinds.size()) {
      kinds.push_back(layer);
      settings["blocks"][std::string(1, kLetters[kind])] = layer;
    }
    letters += kLetters[kind];
  }
  settings["pattern"] = compressed_pattern(letters);
  return read_pronghorn_config(ConfigReader(std::move(settings), reader.where()));
}

void ignore_common_keys(ConfigReader& reader) {
  for (const char* key :
       {"architectures", "torch_dtype", "dtype", "transformers_version", "bos_token_id",
        "eos_token_id", "pad_token_id", "use_cache", "_name_or_path", "model_type",
        "initializer_range", "rescale_prenorm_residual", "train"}) {
    reader.ignore(key);
  }
}

bool is_null(ConfigReader& reader, const std::string& key) {
  return std::ranges::count(reader.keys(), key) > 0 && !reader.has(key);
}

std::vector<std::string> tied_head(const ModelConfig& config, std::string name) {
  if (!config.tie_embeddings) return {};
  return {std::move(name)};
}

}  // namespace pronghorn
