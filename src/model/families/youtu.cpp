// The Youtu-LLM family: the latent attention of DeepSeek-V3 in a dense decoder.
#include "model/families.h"
#include "model/families/mla_keys.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  const bool interleaved = reader.boolean("rope_interleave", true);
  const DecoderDefaults defaults{.tied = true, .rope = {}};
  return read_mla_decoder(reader, {.value_dim = 128, .interleaved = interleaved}, defaults)
      .finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  std::optional<nlohmann::json> json = write_mla_decoder(config, "youtu", "YoutuForCausalLM");
  if (!json) return {};
  (*json)["rope_interleave"] =
      layer_blocks(config).front()->mixers.front().at("rope").at("interleaved");
  return json;
}

}  // namespace

Family youtu_family() { return {"youtu", read, write, mla_decoder_tensors}; }

}  // namespace pronghorn
