// The Qwen3-Next family, without routed experts: as Qwen3.5, with projections key head by key head.
#include "base/error.h"
#include "model/families.h"
#include "model/families/hybrid.h"
#include "model/families/qwen_hybrid.h"

namespace pronghorn {
namespace {

// Throws Error if a layer has routed experts.
void read_no_experts(ConfigReader& reader, int64_t layers) {
  const bool experts = reader.integer("num_experts", 512, 0) > 0;
  const int64_t step = reader.integer("decoder_sparse_step", 1, 1);
  const nlohmann::json& dense = reader.raw("mlp_only_layers");
  for (int64_t i = 0; i < layers && experts; ++i) {
    const bool listed = lists(dense, i);
    require(listed || (i + 1) % step != 0, reader.path("num_experts"),
            "routed experts are not supported in this family");
  }
  for (const char* key : {"num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
                          "shared_expert_intermediate_size"}) {
    reader.ignore(key);
  }
}

ModelConfig read(ConfigReader reader) {
  const QwenHybrid model = read_qwen_hybrid(reader);
  read_no_experts(reader, model.decoder.layers);
  return model.decoder.finish(reader, [&](int64_t layer, nlohmann::json& mixer) {
    if (!model.attention[static_cast<size_t>(layer)]) mixer = model.delta_net;
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  std::optional<nlohmann::json> json =
      write_qwen_hybrid(config, "qwen3_next", "Qwen3NextForCausalLM");
  if (!json) return {};
  (*json)["num_experts"] = 0;
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  return qwen_hybrid_tensors(config, "model", true);
}

}  // namespace

Family qwen3_next_family() { return {"qwen3_next", read, write, tensors}; }

}  // namespace pronghorn
