// LLaDA-MoE (inclusionAI): masked diffusion with OLMoE's experts and a norm of each head's query
// and key.
#include "model/families/llada_moe.h"

#include "base/error.h"
#include "model/families.h"
#include "model/families/gguf_decoder.h"
#include "model/families/gguf_experts.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

constexpr const char* kCount = "num_experts";
constexpr int64_t kMaskToken = 156895;  // of the published models, which do not say it

// What the published code can be told and no published model is.
void refuse_variants(ConfigReader& reader, int64_t layers) {
  for (const char* key : {"moe_router_enable_expert_bias", "norm_topk_prob"}) {
    require(!reader.boolean(key, false), reader.path(key), "true is not supported");
  }
  require(reader.number("routed_scaling_factor", 1.0) == 1.0, reader.path("routed_scaling_factor"),
          "is supported as 1 only");
  reader.one_of("moe_router_score_function", {"softmax"}, "softmax");
  require(reader.integer("shared_expert_intermediate_size", 0, 0) == 0,
          reader.path("shared_expert_intermediate_size"),
          "an expert for all tokens is not supported");
  const nlohmann::json& experts = reader.raw("moe_layer_freq");
  const nlohmann::json all = std::vector<int>(static_cast<size_t>(layers), 1);
  require(experts.is_null() || experts == 1 || experts == all, reader.path("moe_layer_freq"),
          "layers without experts are not supported");
  for (const char* key : {"dense_intermediate_size", "router_num_group", "router_topk_group"}) {
    reader.ignore(key);
  }
}

}  // namespace

ModelConfig read_llada_moe(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {.size = 1, .epsilon = 1e-5});
  decoder.size = reader.integer("expert_intermediate_size", {}, 1);
  decoder.mixer["qk_norm"] = reader.boolean("qk_layernorm", true);
  read_attention_bias(reader, decoder);
  refuse_variants(reader, decoder.layers);
  read_experts(reader, decoder, {kCount, 64, 8}, {{"normalize", false}});
  decoder.settings["diffusion"] = {{"mask_token", reader.integer("mask_token_id", kMaskToken, 0)}};
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write_llada_moe(const ModelConfig& config,
                                              const std::string& model_type) {
  const std::vector<const BlockConfig*> layers = mixture_layers(config);
  if (layers.empty() || !config.diffusion) return {};
  const nlohmann::json& mixer = layers.front()->mixers.front();
  nlohmann::json json = write_mixture(config, model_type, "LLaDAMoEModelLM", kCount);
  json["expert_intermediate_size"] = json.at("intermediate_size");
  json.erase("intermediate_size");
  json["moe_layer_freq"] = std::vector<int>(layers.size(), 1);
  json["qk_layernorm"] = mixer.at("qk_norm");
  json["attention_bias"] = mixer.at("bias");
  json["mask_token_id"] = config.diffusion->mask_token;
  return json;
}

namespace {

std::optional<nlohmann::json> write(const ModelConfig& config) {
  return write_llada_moe(config, "lladamoe");
}

std::vector<GgufKey> gguf_keys() {
  std::vector<GgufKey> more = gguf_expert_keys(kCount, true);
  more.push_back({"feed_forward_length", "dense_intermediate_size", GgufKind::u32, false});
  more.push_back({"expert_feed_forward_length", "expert_intermediate_size", GgufKind::u32, false});
  return gguf_decoder_keys(more);
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_softmax_experts(file, config);
  read_gguf_inner_size(file, "ffn_gate_exps.weight", "expert_intermediate_size", config);
  config["qk_layernorm"] = file.has("blk.0.attn_q_norm.weight");
  read_gguf_diffusion(file, kMaskToken, false, config);
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_gguf_attention(config, json, file);
  write_gguf_diffusion(config, file);
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return with_gguf_experts(gguf_decoder_tensors(config, {}), config);
}

}  // namespace

Family llada_moe_family() {
  static const GgufFormat gguf = {"llada-moe", gguf_keys(), gguf_mixture_other_keys(),
                                  read_gguf,   write_gguf,  gguf_tensors,
                                  false,       nullptr,     nullptr,
                                  {},          true};
  return {"lladamoe", read_llada_moe, write, decoder_tensors, &gguf};
}

}  // namespace pronghorn
