// The Qwen2 family (arXiv 2407.10671): Llama with biases on the query, key and value projections
// and, in some layers, a window.
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {.kv_heads = 32});
  read_no_bias(reader);
  decoder.mixer["bias"] = true;
  const std::vector<int64_t> windows = read_layer_windows(reader);
  return decoder.finish(reader, [&](int64_t layer, nlohmann::json& mixer) {
    mixer["window"] = windows[static_cast<size_t>(layer)];
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<int64_t> windows = layer_windows(config);
  if (windows.empty()) return {};
  nlohmann::json json = write_decoder(config, "qwen2", "Qwen2ForCausalLM");
  json.update(write_layer_windows(windows));
  return json;
}

TensorRules gguf_tensors(const ModelConfig& config) { return gguf_decoder_tensors(config, {}); }

}  // namespace

Family qwen2_family() {
  static const GgufFormat gguf = {"qwen2",
                                  gguf_decoder_keys(),
                                  gguf_decoder_other_keys(),
                                  read_gguf_attention,
                                  write_gguf_attention,
                                  gguf_tensors};
  return {"qwen2", read, write, decoder_tensors, &gguf};
}

}  // namespace pronghorn
