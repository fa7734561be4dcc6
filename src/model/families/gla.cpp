// The GLA family (arXiv 2312.06635), as flash-linear-attention's model_type "gla".
#include "base/error.h"
#include "model/families.h"
#include "model/families/fla.h"

namespace pronghorn {
namespace {

constexpr int64_t kGateRank = 16;  // which no key of the family says
constexpr double kGateDivisor = 16;

ModelConfig read(ConfigReader reader) {
  const FlaDecoder decoder = read_fla_decoder(reader, 4);
  require_own_keys(reader, decoder);
  require(!reader.has("feature_map"), reader.path("feature_map"), "is not supported");
  require(!reader.has("clamp_min"), reader.path("clamp_min"), "is not supported");
  for (const char* key : {"feature_map", "clamp_min"}) reader.ignore(key);
  require_fla(reader, "use_gk", true);
  require_fla(reader, "use_gv", false);
  const nlohmann::json mixer = {
      {"type", "gla"},
      {"heads", decoder.heads},
      {"head_dim", read_expanded_head(reader, "expand_k", 0.5, decoder)},
      {"value_head_dim", read_expanded_head(reader, "expand_v", 1.0, decoder)},
      {"conv_kernel", read_fla_taps(reader, false)},
      {"gate_rank", kGateRank},
      {"gate_divisor", kGateDivisor},
      {"gate", reader.boolean("use_output_gate", true) ? "silu" : "none"}};
  return decoder.finish(reader, mixer);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const nlohmann::json* mixer = fla_mixer(config, "gla");
  if (mixer == nullptr || mixer->at("gate") == "sigmoid") return {};
  nlohmann::json json = write_fla_decoder(config, "gla", "GLAForCausalLM");
  json["num_heads"] = mixer->at("heads");
  json["expand_k"] = fla_expansion(config, *mixer, "head_dim");
  json["expand_v"] = fla_expansion(config, *mixer, "value_head_dim");
  json["use_output_gate"] = mixer->at("gate") == "silu";
  write_fla_taps(*mixer, json);
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  return fla_gated_tensors(config, "gla", fla_convolutions());
}

}  // namespace

Family gla_family() { return {"gla", read, write, tensors}; }

}  // namespace pronghorn
