#include "model/computation.h"

#include <algorithm>
#include <cmath>

#include "formats/json.h"
#include "layers/rope_config.h"

namespace pronghorn {
namespace {

// A few roundings to f32.
bool alike(double a, double b) {
  constexpr double kTolerance = 1e-6;
  return a == b || std::abs(a - b) <= kTolerance * std::max(std::abs(a), std::abs(b));
}

bool same_angles(const nlohmann::json& a, const nlohmann::json& b) {
  if (a.is_null() || b.is_null()) return a == b;
  const SharedAngles one = rope_config(a).angles(), two = rope_config(b).angles();
  return one->interleaved == two->interleaved && alike(one->magnitude, two->magnitude) &&
         std::ranges::equal(one->frequencies, two->frequencies, alike);
}

std::string difference(const nlohmann::json& a, const nlohmann::json& b, const std::string& path) {
  const std::string here = fmt::format("{} = {}", path, shown_json(a));
  if (path.ends_with(".rope")) return same_angles(a, b) ? "" : here;
  if (a.is_number() && b.is_number()) return alike(a.get<double>(), b.get<double>()) ? "" : here;
  if (a.type() != b.type() || a.size() != b.size()) return here;
  if (!a.is_structured()) return a == b ? "" : here;
  for (const auto& [key, value] : a.items()) {
    const auto other = a.is_array() ? b.begin() + (std::stol(key)) : b.find(key);
    const std::string inner = path.empty() ? key : fmt::format("{}.{}", path, key);
    if (other == b.end()) return fmt::format("{} = {}", inner, shown_json(value));
    const std::string found = difference(value, *other, inner);
    if (!found.empty()) return found;
  }
  return "";
}

// Without what only training looks at, or only weights as they begin.
nlohmann::json layer_of(nlohmann::json block) {
  if (block.contains("ffn")) {
    for (const char* key : {"balance_loss", "z_loss", "correction_step"}) block["ffn"].erase(key);
  }
  const bool several = block.contains("mixers");
  if (!several && !block.contains("mixer")) return block;
  nlohmann::json mixers = several ? block["mixers"] : nlohmann::json::array({block["mixer"]});
  for (nlohmann::json& mixer : mixers) {
    for (const char* key : {"time_step_min", "time_step_max", "time_step_floor"}) mixer.erase(key);
  }
  block[several ? "mixers" : "mixer"] = several ? mixers : mixers.front();
  return block;
}

}  // namespace

nlohmann::json computation(const ModelConfig& config) {
  nlohmann::json all = write_pronghorn_config(config);
  const nlohmann::json blocks = all.at("blocks");
  for (const char* key : {"train", "recompute", "initializer_range", "pattern", "blocks",
                          "max_position_embeddings", "original_max_position_embeddings"}) {
    all.erase(key);
  }
  // Heads by what their block is, not by its letter.
  if (all.contains("mtp")) {
    all["mtp"]["block"] = layer_of(blocks.at(std::string(1, config.mtp_block())));
  }
  for (const PatternStep& step : config.steps) {
    const bool block = step.kind == PatternStep::Kind::block;
    all["layers"].push_back(block ? layer_of(blocks.at(std::string(1, step.block)))
                                  : nlohmann::json(static_cast<int>(step.kind)));
  }
  return all;
}

std::string computes_otherwise(const ModelConfig& config, const ModelConfig& other) {
  return difference(computation(config), computation(other), "");
}

}  // namespace pronghorn
