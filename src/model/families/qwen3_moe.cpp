// The Qwen3 family with experts (arXiv 2505.09388): all of them chosen, none shared.
#include "model/families.h"
#include "model/families/gguf_decoder.h"
#include "model/families/gguf_experts.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

constexpr const char* kCount = "num_experts";

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {.kv_heads = 4});
  decoder.mixer["qk_norm"] = true;
  read_attention_bias(reader, decoder);
  // All layers have the window or none.
  const bool used = reader.boolean("use_sliding_window", false);
  read_window(reader, decoder, 4096);
  if (!used) decoder.mixer["window"] = 0;
  const nlohmann::json settings = {{"size", reader.integer("moe_intermediate_size", 768, 1)},
                                   {"normalize", reader.boolean("norm_topk_prob", false)}};
  read_experts(reader, decoder, {kCount, 128, 8}, settings,
               read_sparse_layers(reader, decoder.layers));
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  if (mixture_layers(config).empty()) return {};
  nlohmann::json json = write_mixture(config, "qwen3_moe", "Qwen3MoeForCausalLM", kCount);
  json.update(write_sparse_layers(config));
  json["attention_bias"] = mixture_layers(config).front()->mixers.front().at("bias");
  const int64_t window = layer_windows(config).front();
  json["use_sliding_window"] = window > 0;
  json["sliding_window"] = nullptr;
  if (window > 0) json["sliding_window"] = window;
  return json;
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_softmax_experts(file, config);
  read_gguf_inner_size(file, "ffn_gate_exps.weight", "moe_intermediate_size", config);
  config["norm_topk_prob"] = true;
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return with_gguf_experts(gguf_decoder_tensors(config, {}), config);
}

}  // namespace

Family qwen3_moe_family() {
  static const GgufFormat gguf = {
      "qwen3moe",
      gguf_mixture_keys(
          kCount, {{"expert_feed_forward_length", "moe_intermediate_size", GgufKind::u32, false}}),
      gguf_mixture_other_keys(),
      read_gguf,
      write_gguf_attention,
      gguf_tensors};
  return {"qwen3_moe", read, write, decoder_tensors, &gguf};
}

}  // namespace pronghorn
