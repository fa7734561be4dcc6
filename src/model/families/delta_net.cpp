// The DeltaNet family (arXiv 2406.06484), as flash-linear-attention's model_type "delta_net".
#include "base/error.h"
#include "model/families.h"
#include "model/families/fla.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  const FlaDecoder decoder = read_fla_decoder(reader, 16);
  reader.one_of("qk_norm", {"l2"}, "l2");
  require_fla(reader, "use_output_norm", true);
  const nlohmann::json mixer = {
      {"type", "delta_net"},
      {"heads", decoder.heads},
      {"head_dim", read_expanded_head(reader, "expand_k", 1.0, decoder)},
      {"value_head_dim", read_expanded_head(reader, "expand_v", 1.0, decoder)},
      {"conv_kernel", read_fla_taps(reader, true)},
      {"activation", reader.one_of("qk_activation", {"silu", "elu", "relu", "identity"}, "silu")},
      {"beta", reader.boolean("use_beta", true)},
      {"negative_eigenvalues", reader.boolean("allow_neg_eigval", false)},
      {"gate", reader.boolean("use_gate", false)}};
  return decoder.finish(reader, mixer);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const nlohmann::json* mixer = fla_mixer(config, "delta_net");
  if (mixer == nullptr) return {};
  nlohmann::json json = write_fla_decoder(config, "delta_net", "DeltaNetForCausalLM");
  json["num_heads"] = mixer->at("heads");
  json["expand_k"] = fla_expansion(config, *mixer, "head_dim");
  json["expand_v"] = fla_expansion(config, *mixer, "value_head_dim");
  json["qk_activation"] = mixer->at("activation");
  json["use_beta"] = mixer->at("beta");
  json["allow_neg_eigval"] = mixer->at("negative_eigenvalues");
  json["use_gate"] = mixer->at("gate");
  write_fla_taps(*mixer, json);
  return json;
}

TensorRules tensors(const ModelConfig& config) { return fla_tensors(config, fla_convolutions()); }

}  // namespace

Family delta_net_family() { return {"delta_net", read, write, tensors}; }

}  // namespace pronghorn
