// Registers the layer that docs/adding-an-architecture.md prints, as a program of one's own would:
// all tests of whole models then run on its example.
#include "layers/layer.h"

namespace pronghorn {

MixerType deltanet_mixer_type();

namespace {
[[maybe_unused]] const bool registered = [] {
  register_mixer_type(deltanet_mixer_type());
  return true;
}();
}  // namespace
}  // namespace pronghorn
