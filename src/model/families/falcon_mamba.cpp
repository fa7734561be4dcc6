// The Falcon Mamba family (arXiv 2410.05355): Mamba with norms, without weights, on its step sizes,
// B and C.
#include <utility>

#include "model/families.h"
#include "model/families/backbone.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  const double epsilon = reader.number("mixer_rms_eps", 1e-6, 0);
  reader.ignore("use_falcon_mambapy");
  return read_mamba_backbone(std::move(reader),
                             {{"inner_norms", "plain"}, {"inner_norm_epsilon", epsilon}});
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  std::optional<nlohmann::json> json =
      write_mamba_backbone(config, "falcon_mamba", "FalconMambaForCausalLM");
  if (!json) return {};
  (*json)["mixer_rms_eps"] =
      uniform_block(config, "mamba")->mixers.front().at("inner_norm_epsilon");
  return json;
}

}  // namespace

Family falcon_mamba_family() {
  static const GgufFormat gguf = mamba_gguf(true);
  return {"falcon_mamba", read, write, backbone_tensors, &gguf};
}

}  // namespace pronghorn
