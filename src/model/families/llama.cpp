// The Llama family (arXiv 2302.13971, 2307.09288): RMSNorm, rotary grouped-query attention, SwiGLU.
#include "model/families.h"
#include "model/families/decoder.h"

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

}  // namespace

Family llama_family() { return {"llama", read, write, decoder_tensors}; }

}  // namespace pronghorn
