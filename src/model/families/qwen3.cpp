// The Qwen3 family (arXiv 2505.09388): Llama with a norm on each head's query and key and, in some
// layers, a window.
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {.kv_heads = 32, .head_dim = 128});
  decoder.mixer["qk_norm"] = true;
  read_attention_bias(reader, decoder);
  const std::vector<int64_t> windows = read_layer_windows(reader);
  return decoder.finish(reader, [&](int64_t layer, nlohmann::json& mixer) {
    mixer["window"] = windows[static_cast<size_t>(layer)];
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<int64_t> windows = layer_windows(config);
  if (windows.empty()) return {};
  nlohmann::json json = write_decoder(config, "qwen3", "Qwen3ForCausalLM");
  json["attention_bias"] = decoder_layers(config).front()->mixers.front().at("bias");
  json.update(write_layer_windows(windows));
  return json;
}

TensorRules gguf_tensors(const ModelConfig& config) { return gguf_decoder_tensors(config, {}); }

}  // namespace

Family qwen3_family() {
  static const GgufFormat gguf = {"qwen3",
                                  gguf_decoder_keys(),
                                  gguf_decoder_other_keys(),
                                  read_gguf_attention,
                                  write_gguf_attention,
                                  gguf_tensors};
  return {"qwen3", read, write, decoder_tensors, &gguf};
}

}  // namespace pronghorn
