#include "model/extend.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "extending";

nlohmann::json scaling_of(const ExtendOptions& options, int64_t original, int64_t prefix) {
  const double factor = static_cast<double>(options.context) / static_cast<double>(original);
  if (options.scaling == "ntk") {
    // With a factor of 1 the base is multiplied by (context / original)^(d / (d - 2)) throughout.
    return {{"type", "dynamic_ntk"},
            {"factor", 1.0},
            {"original_context", original},
            {"context", options.context + prefix}};
  }
  require(options.scaling == "yarn" || options.scaling == "linear", "--scaling",
          "'{}' is none of yarn, linear, ntk", options.scaling);
  return {{"type", options.scaling}, {"factor", factor}, {"original_context", original}};
}

// Whether this is a mixer's settings with positions that grow with the text.
bool is_unlimited(const nlohmann::json& mixer) {
  if (!mixer.is_object() || !mixer.contains("rope") || !mixer.at("rope").is_object()) return false;
  if (mixer.value("type", nlohmann::json()) == "nsa") return true;  // a part of it has a window
  for (const char* key : {"window", "segment"}) {
    const auto found = mixer.find(key);
    if (found != mixer.end() && found->is_number() && *found > 0) return false;
  }
  return true;
}

// Gives all mixers in a block's settings the scaling; returns how many there are.
int64_t scale_positions(nlohmann::json& settings, const nlohmann::json& scaling) {
  if (settings.is_array() || (settings.is_object() && !is_unlimited(settings))) {
    int64_t count = 0;
    for (nlohmann::json& part : settings) count += scale_positions(part, scaling);
    return count;
  }
  if (!settings.is_object()) return 0;
  nlohmann::json& own = settings.at("rope")["scaling"];
  if (own.is_object()) {
    require(own.at("type") == scaling.at("type"), kWhere,
            "positions are scaled by {} already (choose the same)", own.at("type").dump());
  }
  own = scaling;
  return 1;
}

}  // namespace

ModelConfig extended_config(const ModelConfig& config, const ExtendOptions& options) {
  require(!config.diffusion, kWhere, "the model fills in masked tokens");
  require(config.learned_positions == 0, kWhere,
          "the model has {} learned positions, and no others", config.learned_positions);
  const TrainedContext trained = trained_context(config);
  int64_t original = options.original;
  if (original == 0) original = trained.original > 0 ? trained.original : trained.tokens;
  require(original > 1, kWhere, "the context of the training is not known (say it: --original)");
  require(options.context > std::max(original, options.original > 0 ? 0 : trained.tokens), kWhere,
          "{} tokens are no more than the {} that the model was trained for", options.context,
          std::max(original, trained.tokens));
  nlohmann::json settings = write_pronghorn_config(config);
  const nlohmann::json scaling = scaling_of(options, original, config.prefix_tokens);
  require(scale_positions(settings.at("blocks"), scaling) > 0, kWhere,
          "no layer has rotary positions without a window, which would have to be scaled");
  settings["max_position_embeddings"] = options.context;
  settings["original_max_position_embeddings"] = original;
  ModelConfig extended = read_pronghorn_config({std::move(settings), kWhere});
  extended.family = config.family;
  return extended;
}

}  // namespace pronghorn
