// The RetNet family (arXiv 2307.08621), as flash-linear-attention's model_type "retnet".
#include "base/error.h"
#include "model/families.h"
#include "model/families/fla.h"

namespace pronghorn {
namespace {

constexpr double kTheta = 10000;  // which no key of the family says

ModelConfig read(ConfigReader reader) {
  const FlaDecoder decoder = read_fla_decoder(reader, 8, 2);
  require_own_keys(reader, decoder);
  const std::string map = reader.string("feature_map", "");
  require(map.empty() || map == "relu", reader.path("feature_map"), "'{}' is not supported", map);
  require(read_fla_taps(reader, false) == 0, reader.path("use_short_conv"),
          "true is not supported");
  const nlohmann::json mixer = {
      {"type", "retnet"},
      {"heads", decoder.heads},
      {"head_dim", read_expanded_head(reader, "expand_k", 1.0, decoder)},
      {"value_head_dim", read_expanded_head(reader, "expand_v", 2.0, decoder)},
      {"feature_map", map.empty() ? "identity" : map},
      {"rope_theta", kTheta},
      {"gate", reader.boolean("use_output_gate", true) ? "silu" : "none"}};
  return decoder.finish(reader, mixer);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const nlohmann::json* mixer = fla_mixer(config, "retnet");
  if (mixer == nullptr || mixer->at("gate") == "sigmoid") return {};
  const nlohmann::json& map = mixer->at("feature_map");
  if (map != "identity" && map != "relu") return {};
  nlohmann::json json = write_fla_decoder(config, "retnet", "RetNetForCausalLM");
  json["num_heads"] = mixer->at("heads");
  json["expand_k"] = fla_expansion(config, *mixer, "head_dim");
  json["expand_v"] = fla_expansion(config, *mixer, "value_head_dim");
  json["use_output_gate"] = mixer->at("gate") == "silu";
  if (map != "identity") json["feature_map"] = map;
  return json;
}

TensorRules tensors(const ModelConfig& config) { return fla_gated_tensors(config, "retnet", {}); }

}  // namespace

Family retnet_family() { return {"retnet", read, write, tensors}; }

}  // namespace pronghorn
