#include "layers/rwkv_parts.h"

#include <algorithm>
#include <cmath>

namespace pronghorn {

RwkvDepth::RwkvDepth(const LayerContext& context)
    : layers(std::max<double>(1, static_cast<double>(context.depth))),
      done(static_cast<double>(context.layer) /
           std::max<double>(1, static_cast<double>(context.depth - 1))),
      left(std::max(0.0, 1 - static_cast<double>(context.layer) / layers)),
      layer(static_cast<double>(context.layer)) {}

Initializer rwkv_shift_initializer(int64_t width, double power) {
  return [=](Random&, int64_t i) {
    return static_cast<float>(1 -
                              std::pow(static_cast<double>(i) / static_cast<double>(width), power));
  };
}

double along_channels(int64_t i, int64_t width) {
  return static_cast<double>(i) / static_cast<double>(std::max<int64_t>(1, width - 1)) - 0.5;
}

}  // namespace pronghorn
