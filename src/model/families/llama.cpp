// The Llama family (arXiv 2302.13971, 2307.09288): RMSNorm, rotary grouped-query attention, SwiGLU.
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/gguf_format.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  DecoderTraits traits;
  traits.windows.assign(static_cast<size_t>(read_layer_count(reader)), 0);
  return read_decoder(std::move(reader), traits, {});
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  if (decoder_windows(config).empty()) return {};
  return write_decoder(config, "llama", "LlamaForCausalLM");
}

TensorRules gguf_tensors(const ModelConfig& config) { return gguf_decoder_tensors(config, true); }

}  // namespace

Family llama_family() {
  static const GgufFormat gguf = {"llama",        gguf_decoder_keys(), gguf_decoder_other_keys(),
                                  read_gguf_rope, write_gguf_rope,     gguf_tensors};
  return {"llama", read, write, decoder_tensors, &gguf};
}

}  // namespace pronghorn
