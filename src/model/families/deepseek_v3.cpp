// The DeepSeek-V3 family (arXiv 2412.19437; R1, Moonlight): multi-head latent attention, and
// experts chosen by sigmoids with a correction that balances them. Kimi K2 (arXiv 2507.20534) is
// the same under a name of its own.
#include "model/families.h"
#include "model/families/deepseek.h"
#include "model/families/mla_keys.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  const bool interleaved = reader.boolean("rope_interleave", true);
  Decoder decoder = read_mla_decoder(reader, {.value_dim = 128, .interleaved = interleaved}, {});
  read_deepseek_experts(reader, decoder, kDeepseekV3, read_corrected_router(reader, kDeepseekV3));
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write_as(const ModelConfig& config, const std::string& model_type) {
  std::optional<nlohmann::json> json =
      write_mla_decoder(config, model_type, "DeepseekV3ForCausalLM");
  if (!json || !has_experts(config)) return {};
  json->update(write_deepseek_experts(config));
  (*json)["rope_interleave"] =
      layer_blocks(config).front()->mixers.front().at("rope").at("interleaved");
  return json;
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  return write_as(config, "deepseek_v3");
}

std::optional<nlohmann::json> write_kimi(const ModelConfig& config) {
  return write_as(config, "kimi_k2");
}

TensorRules tensors(const ModelConfig& config) {
  return deepseek_tensors(config, mla_decoder_tensors);
}

}  // namespace

Family deepseek_v3_family() {
  static const GgufFormat gguf = gguf_deepseek2(read_gguf_deepseek2);
  return {"deepseek_v3", read, write, tensors, &gguf};
}
Family kimi_k2_family() { return {"kimi_k2", read, write_kimi, tensors}; }

}  // namespace pronghorn
