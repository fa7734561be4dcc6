// The Mistral family (arXiv 2310.06825): Llama whose layers all look back through one window.
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"
#include "model/families/gguf_experts.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {.kv_heads = 8});
  read_no_bias(reader);
  // The default of the reference; later models say null: no window.
  read_window(reader, decoder, 4096);
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<int64_t> windows = layer_windows(config);
  if (windows.empty()) return {};
  nlohmann::json json = write_decoder(config, "mistral", "MistralForCausalLM");
  json["sliding_window"] = nullptr;
  if (windows.front() > 0) json["sliding_window"] = windows.front();
  return json;
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return gguf_decoder_tensors(config, {.rope_pairs = true, .biases = true, .rope_tables = true});
}

}  // namespace

Family mistral_family() {
  static const GgufFormat gguf = {"llama",
                                  gguf_decoder_keys(),
                                  gguf_decoder_other_keys(),
                                  read_gguf_attention,
                                  write_gguf_attention,
                                  gguf_tensors,
                                  {},
                                  gguf_without_experts};
  return {"mistral", read, write, decoder_tensors, &gguf};
}

}  // namespace pronghorn
