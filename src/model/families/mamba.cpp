// The Mamba family (arXiv 2312.00752), as transformers' model_type "mamba".
#include <utility>

#include "model/families.h"
#include "model/families/backbone.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) { return read_mamba_backbone(std::move(reader), {}); }

std::optional<nlohmann::json> write(const ModelConfig& config) {
  return write_mamba_backbone(config, "mamba", "MambaForCausalLM");
}

}  // namespace

Family mamba_family() {
  static const GgufFormat gguf = mamba_gguf(false);
  return {"mamba", read, write, backbone_tensors, &gguf};
}

}  // namespace pronghorn
