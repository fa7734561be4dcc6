#include "model/families/mapping.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "model/block_place.h"

namespace pronghorn {

std::vector<const BlockConfig*> layer_blocks(const ModelConfig& config) {
  std::vector<const BlockConfig*> blocks;
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

std::vector<const nlohmann::json*> mixers_of(const ModelConfig& config, std::string_view type) {
  std::vector<const nlohmann::json*> mixers;
  for (const BlockConfig* block : layer_blocks(config)) {
    for (const nlohmann::json& mixer : block->mixers) {
      if (mixer.at("type") == type) mixers.push_back(&mixer);
    }
  }
  return mixers;
}

namespace {

// "layers[0-2,5]": the layers whose letter this is; of many, the first few.
std::string layers_with_letter(std::string_view letters, char letter) {
  constexpr int kShown = 4;
  std::string text;
  int shown = 0;
  for (size_t i = letters.find(letter); i != letters.npos; i = letters.find(letter, i)) {
    if (shown++ == kShown) {
      text += ",...";
      break;
    }
    const size_t end = std::min(letters.size(), letters.find_first_not_of(letter, i));
    text += fmt::format("{}{}", text.empty() ? "" : ",", i);
    if (end - i > 1) text += fmt::format("-{}", end - 1);
    i = end;
  }
  return fmt::format("layers[{}]", text);
}

}  // namespace

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
  return read_pronghorn_config(ConfigReader(std::move(settings), reader.where()), [&](char block) {
    return reader.path(layers_with_letter(letters, block));
  });
}

namespace {

// A count of tokens that a file may well mean; 0 for all else.
int64_t tokens_of(const nlohmann::json& value) {
  constexpr double kMeant = 1e12;
  if (!value.is_number()) return 0;
  const double tokens = value.get<double>();
  return tokens >= 1 && tokens <= kMeant ? static_cast<int64_t>(tokens) : 0;
}

}  // namespace

void read_trained_context(const ConfigReader& reader, nlohmann::json& settings) {
  int64_t tokens = 0;
  for (const char* key : {"max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length",
                          "max_seq_len", "max_seq_length", "model_max_length", "seq_length"}) {
    if (tokens == 0) tokens = tokens_of(reader.peek(key));
  }
  int64_t original = tokens_of(reader.peek("original_max_position_embeddings"));
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const nlohmann::json& rope = reader.peek(key);
    if (!rope.is_object()) continue;
    const std::string type = rope.value("rope_type", rope.value("type", nlohmann::json())).dump();
    const nlohmann::json factor = rope.value("factor", nlohmann::json());
    const double scale = factor.is_number() ? factor.get<double>() : 1;
    if (const int64_t said =
            tokens_of(rope.value("original_max_position_embeddings", nlohmann::json()))) {
      original = said;
      // Some files still give the original length, and the factor beside it.
      if (tokens <= original) tokens = tokens_of(static_cast<double>(original) * scale);
    } else if (tokens > 0 && scale > 1 && (type == "\"linear\"" || type == "\"dynamic\"")) {
      // Without a length in the object, max_position_embeddings is the one before scaling.
      original = tokens;
      tokens = tokens_of(static_cast<double>(original) * scale);
    }
  }
  if (tokens > 0) settings["max_position_embeddings"] = tokens;
  if (tokens > 0 && original > 0 && original < tokens) {
    settings["original_max_position_embeddings"] = original;
  }
}

nlohmann::json write_trained_context(const ModelConfig& config) {
  const TrainedContext context = trained_context(config);
  if (context.tokens == 0) return nlohmann::json::object();
  return {{"max_position_embeddings", context.tokens}};
}

double divisor_of(double factor) {
  const double near = 1 / factor;
  for (const double x : {std::round(near), std::round(near * 1e6) / 1e6, std::nextafter(near, 0.0),
                         std::nextafter(near, 2 * near)}) {
    if (1 / x == factor) return x;
  }
  return near;
}

void read_time_step_rank(ConfigReader& reader, const std::string& key, nlohmann::json& mixer) {
  if (reader.raw(key) == "auto") return;
  if (reader.has(key)) mixer["time_step_rank"] = reader.integer(key, {}, 1);
}

bool is_null(ConfigReader& reader, const std::string& key) {
  return std::ranges::count(reader.keys(), key) > 0 && !reader.has(key);
}

std::vector<std::string> tied_head(const ModelConfig& config, std::string name) {
  if (!config.tie_embeddings) return {};
  return {std::move(name)};
}

}  // namespace pronghorn
