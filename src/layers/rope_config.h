// The settings of rotary positions: an object that a layer has, or has not.
#pragma once

#include <cstdint>

#include "layers/fields.h"
#include "layers/layer.h"
#include "ops/rope.h"

namespace pronghorn {

struct RopeConfig {
  double theta = 0;
  int64_t rotary_dim = 0;
  bool interleaved = false;
  RopeScaling scaling;

  // head_dim: of the heads that are turned.
  void fields(ConfigFields& f, int64_t head_dim);

  SharedAngles angles() const { return rotary_angles(theta, rotary_dim, scaling, interleaved); }

 private:
  void scaling_fields(ConfigFields& f);
};

// Heads turned to their positions, as rope() does, and to both of their coordinates where rows have
// two (patches of an image); as they are where angles are null: a layer without positions.
Tensor turned(const LayerInput& input, const Tensor& heads, int64_t head_dim,
              const SharedAngles& angles);

// As Mixer::context_limit(), of a layer that knows positions by these angles alone.
int64_t context_limit(const SharedAngles& angles);

// Of a complete `rope` object, as a layer's configuration has it.
RopeConfig rope_config(const nlohmann::json& rope);

}  // namespace pronghorn
