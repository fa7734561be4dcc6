// Our own format: any configuration, tensors under our names.
#include "model/families.h"
#include "model/families/mapping.h"

namespace pronghorn {
namespace {

std::optional<nlohmann::json> write(const ModelConfig& config) {
  return write_pronghorn_config(config);
}

TensorRules tensors(const ModelConfig& config) {
  // Depthwise convolutions as the Mamba families publish them: [channels, 1, taps].
  return {{{{"*conv1d.weight"}, {"*conv1d.weight"}, transforms::squeeze(1)}, {{"*"}, {"*"}, {}}},
          tied_head(config, "lm_head.weight")};
}

}  // namespace

Family pronghorn_family() { return {"pronghorn", read_pronghorn_config, write, tensors}; }

}  // namespace pronghorn
