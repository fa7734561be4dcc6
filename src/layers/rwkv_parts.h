// What the layers of RWKV share: how initial values depend on depth and channel, as in the authors'
// trainers.
#pragma once

#include <cstdint>

#include "layers/layer.h"
#include "layers/parameters.h"

namespace pronghorn {

// Where a layer is among the others.
struct RwkvDepth {
  explicit RwkvDepth(const LayerContext& context);

  double layers;
  double done;  // 0 in the first layer, 1 in the last
  double left;  // 1 in the first layer, nearly 0 in the last
  double layer;
};

// Mixes of the token shift: the later the channel and the layer, the less of the row before.
Initializer rwkv_shift_initializer(int64_t width, double power);

// From -1/2 in the first channel to 1/2 in the last.
double along_channels(int64_t i, int64_t width);

}  // namespace pronghorn
