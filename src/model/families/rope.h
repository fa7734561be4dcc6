// Rotary positions as published configurations spell them.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>

#include "formats/json.h"
#include "model/config.h"

namespace pronghorn {

// What a family takes for keys that its configuration does not have.
struct RopeDefaults {
  double theta = 10000;
  double partial = 1;  // share of a head's channels that is turned
  // Whether the reference looks at partial_rotary_factor. Where it does not, the key is an error.
  bool has_partial = false;
  bool by_layer = false;  // layers differ: the family reads its keys itself
};

// The keys of a whole configuration: "rope_scaling" of older files and "rope_parameters" of newer
// ones, rope_theta, partial_rotary_factor, max_position_embeddings and
// original_max_position_embeddings. Returns what a layer's `rope` is. Besides what the reference
// reads, the object may have `context`, the longest sequence, on which dynamic and longrope depend
// (see RopeScaling). Throws Error for kinds of scaling that are not known.
nlohmann::json read_rope(ConfigReader& reader, int64_t head_dim, const RopeDefaults& defaults);

// The same of one object such as "rope_parameters". theta, partial: of whole the configuration.
nlohmann::json read_rope_object(ConfigReader object, ConfigReader& whole, int64_t head_dim,
                                double theta, double partial);

// The keys that say a layer's `rope`: rope_theta, and where they are needed rope_scaling,
// partial_rotary_factor and max_position_embeddings.
// context: that of the model, whose keys are there already.
nlohmann::json write_rope(const nlohmann::json& rope, int64_t head_dim,
                          const TrainedContext& context);

// The share of a head's channels that is read as this many.
double rotary_share(int64_t channels, int64_t head_dim);

// What rope_scaling would be; null: none.
nlohmann::json write_rope_scaling(const nlohmann::json& rope);

}  // namespace pronghorn
