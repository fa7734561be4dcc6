// The Qwen2 family with experts (Qwen1.5-MoE, arXiv 2407.10671): besides those that are chosen one
// that every token is given to, behind a gate of its own.
#include "base/error.h"
#include "model/families.h"
#include "model/families/gguf_decoder.h"
#include "model/families/gguf_experts.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

constexpr const char* kCount = "num_experts";

// Every other layer has the window, below max_window_layers.
std::vector<int64_t> read_windows(ConfigReader& reader, int64_t layers) {
  constexpr int64_t kWindow = 4096, kLast = 28;  // the reference's defaults
  const bool used = reader.boolean("use_sliding_window", false);
  const int64_t window =
      reader.integer("sliding_window", used && !is_null(reader, "sliding_window") ? kWindow : 0, 0);
  const int64_t last = reader.integer("max_window_layers", kLast, 0);
  std::vector<int64_t> windows;
  for (const bool sliding : read_sliding_layers(
           reader, layers, [&](int64_t i) { return used && i % 2 == 0 && i < last; })) {
    require(!sliding || (used && window > 0), reader.path("layer_types"),
            "\"sliding_attention\" without use_sliding_window and sliding_window");
    windows.push_back(sliding ? window : 0);
  }
  return windows;
}

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {.kv_heads = 16});
  decoder.mixer["bias"] = reader.boolean("qkv_bias", true);
  const nlohmann::json settings = {
      {"size", reader.integer("moe_intermediate_size", 1408, 1)},
      {"normalize", reader.boolean("norm_topk_prob", false)},
      {"shared_size", reader.integer("shared_expert_intermediate_size", 5632, 1)},
      {"shared_gate", true}};
  read_experts(reader, decoder, {kCount, 60, 4}, settings,
               read_sparse_layers(reader, decoder.layers));
  const std::vector<int64_t> windows = read_windows(reader, decoder.layers);
  return decoder.finish(reader, [&](int64_t layer, nlohmann::json& mixer) {
    mixer["window"] = windows[static_cast<size_t>(layer)];
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  if (mixture_layers(config).empty()) return {};
  nlohmann::json json = write_mixture(config, "qwen2_moe", "Qwen2MoeForCausalLM", kCount);
  json.update(write_sparse_layers(config));
  json.update(write_layer_windows(layer_windows(config)));
  json["qkv_bias"] = mixture_layers(config).front()->mixers.front().at("bias");
  json["shared_expert_intermediate_size"] = experts_of(config).at("shared_size");
  return json;
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_softmax_experts(file, config);
  read_gguf_inner_size(file, "ffn_gate_exps.weight", "moe_intermediate_size", config);
  read_gguf_inner_size(file, "ffn_gate_shexp.weight", "shared_expert_intermediate_size", config);
  config["qkv_bias"] = file.has("blk.0.attn_q.bias");
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return with_gguf_experts(gguf_decoder_tensors(config, {}), config);
}

}  // namespace

Family qwen2_moe_family() {
  static const GgufFormat gguf = {
      "qwen2moe",
      gguf_mixture_keys(
          kCount, {{"expert_feed_forward_length", "moe_intermediate_size", GgufKind::u32, false},
                   {"expert_shared_feed_forward_length", "shared_expert_intermediate_size",
                    GgufKind::u32, false}}),
      gguf_mixture_other_keys(),
      read_gguf,
      write_gguf_attention,
      gguf_tensors,
      false};
  return {"qwen2_moe", read, write, decoder_tensors, &gguf};
}

}  // namespace pronghorn
