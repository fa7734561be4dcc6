// The Mamba family (arXiv 2312.00752), as transformers' model_type "mamba".
#include <utility>

#include "model/families.h"
#include "model/families/backbone.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  const int64_t hidden = reader.integer("hidden_size", {}, 1, 1 << 17);
  const double expand = reader.number("expand", 2.0, 0.0625, 64);
  nlohmann::json mixer = {{"type", "mamba"}};
  mixer["inner_size"] = reader.integer(
      "intermediate_size", static_cast<int64_t>(expand * static_cast<double>(hidden)), 1);
  mixer["state"] = reader.integer("state_size", 16, 1);
  const nlohmann::json& rank = reader.raw("time_step_rank");
  if (rank.is_number_integer()) mixer["time_step_rank"] = rank;
  return read_backbone(std::move(reader), std::move(mixer), hidden, true);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const BlockConfig* block = uniform_block(config, "mamba");
  if (block == nullptr) return {};
  const nlohmann::json& mixer = block->mixers.front();
  // The family derives the inner size from a whole expansion factor.
  const int64_t inner = mixer.at("inner_size");
  if (inner % config.hidden_size != 0) return {};
  nlohmann::json json = {{"model_type", "mamba"},
                         {"architectures", {"MambaForCausalLM"}},
                         {"intermediate_size", inner},
                         {"expand", inner / config.hidden_size},
                         {"time_step_rank", mixer.at("time_step_rank")}};
  json.update(write_backbone(config, mixer));
  return json;
}

}  // namespace

Family mamba_family() { return {"mamba", read, write, backbone_tensors}; }

}  // namespace pronghorn
