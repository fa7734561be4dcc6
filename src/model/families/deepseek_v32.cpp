// The DeepSeek-V3.2 family (arXiv 2512.02556): DeepSeek-V3 whose latent attention looks at the
// tokens that an indexer chooses.
#include "base/error.h"
#include "layers/toolbox.h"
#include "model/families.h"
#include "model/families/deepseek.h"
#include "model/families/mla_keys.h"

namespace pronghorn {
namespace {

constexpr char kLayerTypes[] = "layer_types", kChosen[] = "indexed_attention";

void check_layer_types(ConfigReader& reader) {
  const nlohmann::json& types = reader.peek(kLayerTypes);
  if (types.is_array()) {
    for (const nlohmann::json& type : types) {
      require(type == kChosen, reader.path(kLayerTypes), "{} is not \"{}\"", type.dump(), kChosen);
    }
  }
  reader.ignore(kLayerTypes);
}

ModelConfig read(ConfigReader reader) {
  check_layer_types(reader);
  Decoder decoder = read_mla_decoder(reader, {.value_dim = 128, .interleaved = true}, {});
  require(decoder.mixer.at("query_rank") != 0, reader.path("q_lora_rank"),
          "null is not read in this family, whose indexer needs what it is the width of");
  const int64_t rope_dim = decoder.mixer.at("rope_dim");
  decoder.mixer["type"] = "dsa";
  decoder.mixer["top"] = reader.integer("index_topk", 2048, 1);
  decoder.mixer["index_heads"] = reader.integer("index_n_heads", 64, 1, limits::kHeads);
  decoder.mixer["index_dim"] = reader.integer("index_head_dim", 128, rope_dim, limits::kHeadDim);
  read_deepseek_experts(reader, decoder, kDeepseekV3, read_corrected_router(reader, kDeepseekV3),
                        read_layer_types_of_mlp(reader, decoder.layers));
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  std::optional<nlohmann::json> json =
      write_mla_decoder(config, "deepseek_v32", "DeepseekV32ForCausalLM", "dsa");
  if (!json || !has_experts(config)) return {};
  json->update(write_deepseek_experts(config));
  const nlohmann::json& mixer = layer_blocks(config).front()->mixers.front();
  (*json)["index_topk"] = mixer.at("top");
  (*json)["index_n_heads"] = mixer.at("index_heads");
  (*json)["index_head_dim"] = mixer.at("index_dim");
  (*json)["mlp_layer_types"] = layer_types_of_mlp(config);
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  return deepseek_tensors(config, mla_decoder_tensors);
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_deepseek2(file, config);
  require(gguf_router_scores(file) == "sigmoid", file.metadata.path(file.key(kGgufScores)),
          "a softmax is not what this family has");
}

}  // namespace

Family deepseek_v32_family() {
  static const GgufFormat gguf = [] {
    GgufFormat format = gguf_deepseek2(read_gguf);
    format.architecture = "deepseek32";
    format.keys.insert(format.keys.end(), {{"attention.indexer.head_count", "index_n_heads"},
                                           {"attention.indexer.key_length", "index_head_dim"},
                                           {"attention.indexer.top_k", "index_topk"}});
    return format;
  }();
  return {"deepseek_v32", read, write, tensors, &gguf};
}

}  // namespace pronghorn
