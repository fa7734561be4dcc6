// The Qwen3-Next family: as Qwen3.5, with projections key head by key head, and experts in all
// layers or some.
#include "model/families.h"
#include "model/families/mixture.h"
#include "model/families/qwen_hybrid.h"

namespace pronghorn {
namespace {

void read_feed_forwards(ConfigReader& reader, Decoder& decoder) {
  std::vector<bool> sparse = read_sparse_layers(reader, decoder.layers);
  if (reader.integer("num_experts", 512, 0) > 0) {
    read_qwen_experts(reader, decoder, 512, 10, std::move(sparse));
    return;
  }
  for (const char* key : {"num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
                          "shared_expert_intermediate_size"}) {
    reader.ignore(key);
  }
}

ModelConfig read(ConfigReader reader) {
  HybridDecoder model = read_qwen_hybrid(reader);
  read_feed_forwards(reader, model.decoder);
  return model.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  std::optional<nlohmann::json> json =
      write_qwen_hybrid(config, "qwen3_next", "Qwen3NextForCausalLM");
  if (!json) return {};
  (*json)["num_experts"] = 0;
  if (!has_experts(config)) return json;
  json->update(write_qwen_experts(config));
  json->update(write_sparse_layers(config));
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  return qwen_hybrid_tensors(config, "model", true);
}

}  // namespace

Family qwen3_next_family() { return {"qwen3_next", read, write, tensors}; }

}  // namespace pronghorn
