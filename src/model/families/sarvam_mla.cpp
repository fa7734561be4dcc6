// The Sarvam family with latent attention: DeepSeek-V3 with other names for some keys.
#include <utility>

#include "model/families.h"
#include "model/families/deepseek.h"
#include "model/families/mla_keys.h"

namespace pronghorn {
namespace {

// The configuration with DeepSeek's names, and without what follows from other keys.
ConfigReader with_names_of_deepseek(const ConfigReader& reader) {
  nlohmann::json json = nlohmann::json::object();
  for (const std::string& key : reader.keys()) {
    if (key == "num_shared_experts") {
      json["n_shared_experts"] = reader.peek(key);
    } else if (key == "num_mtp_layers") {
      json["num_nextn_predict_layers"] = reader.peek(key);
    } else if (key != "head_dim" && key != "q_head_dim") {
      json[key] = reader.peek(key);
    }
  }
  // The published files' word for what all others call YaRN.
  for (const char* key : {"type", "rope_type"}) {
    const auto scaling = json.find("rope_scaling");
    if (scaling == json.end() || !scaling->is_object()) break;
    if (scaling->value(key, nlohmann::json()) == "deepseek_yarn") (*scaling)[key] = "yarn";
  }
  return {std::move(json), reader.where()};
}

ModelConfig read(ConfigReader published) {
  ConfigReader reader = with_names_of_deepseek(published);
  MlaDefaults mla{.query_rank = 0, .value_dim = 128};
  mla.interleaved = reader.boolean("rope_interleave", true);
  Decoder decoder = read_mla_decoder(reader, mla, {});
  const DeepseekDefaults defaults = {
      .experts = 128, .top_k = 8, .size = 2048, .dense = 1, .scale = 2.5};
  read_deepseek_experts(reader, decoder, defaults, read_corrected_router(reader, defaults));
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  std::optional<nlohmann::json> json =
      write_mla_decoder(config, "sarvam_mla", "DeepseekV3ForCausalLM");
  if (!json || !has_experts(config)) return {};
  json->update(write_deepseek_experts(config));
  json->erase("head_dim");
  (*json)["rope_interleave"] =
      layer_blocks(config).front()->mixers.front().at("rope").at("interleaved");
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  return deepseek_tensors(config, mla_decoder_tensors);
}

}  // namespace

Family sarvam_mla_family() { return {"sarvam_mla", read, write, tensors}; }

}  // namespace pronghorn
