// The Qwen3-Next family: as Qwen3.5, with projections key head by key head, and experts in all
// layers or some.
#include <algorithm>

#include "base/error.h"
#include "model/families.h"
#include "model/families/gguf_experts.h"
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
  HybridDecoder model = read_qwen_hybrid(reader, 0, 1);  // published files lack the key
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

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  const std::vector<bool> sparse = sparse_layers(config);
  require(std::ranges::count(sparse, false) == 0, file.metadata.where(),
          "files of the architecture qwen3next have experts in all layers");
  write_qwen_gguf(config, json, file);
}

// Older files have queries, keys, values and gates in one matrix, key head by key head.
TensorRules gguf_tensors(const ModelConfig& config) {
  TensorRules tensors = qwen_gguf_tensors(config, true);
  const std::vector<const BlockConfig*> layers = layer_blocks(config);
  for (size_t i = 0; i < layers.size(); ++i) {
    const nlohmann::json& mixer = layers[i]->mixers.front();
    if (mixer.at("type") != "gated_deltanet") continue;
    const std::string ours = fmt::format("layers.{}.mixer.", i);
    tensors.layouts.push_back({{ours + "q_proj.weight", ours + "k_proj.weight",
                                ours + "v_proj.weight", ours + "g_proj.weight"},
                               {fmt::format("blk.{}.ssm_in.weight", i)},
                               transforms::split(0, mixer.at("heads").get<int64_t>())});
  }
  return tensors;
}

}  // namespace

Family qwen3_next_family() {
  static const GgufFormat gguf = {"qwen3next",
                                  qwen_gguf_keys(qwen_gguf_expert_keys()),
                                  qwen_gguf_other_keys(),
                                  read_qwen_gguf,
                                  write_gguf,
                                  gguf_tensors};
  return {"qwen3_next", read, write, tensors, &gguf};
}

}  // namespace pronghorn
