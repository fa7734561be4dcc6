// The Gated DeltaNet family (arXiv 2412.06464), as flash-linear-attention's model_type
// "gated_deltanet".
#include "base/error.h"
#include "model/families.h"
#include "model/families/fla.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  const FlaDecoder decoder = read_fla_decoder(reader, 6);
  require_fla(reader, "use_gate", true);
  reader.one_of("output_gate_activation", {"swish", "silu"}, "swish");
  const int64_t taps = read_fla_taps(reader, true);
  require(taps > 0, reader.path("use_short_conv"), "false is not supported");
  nlohmann::json mixer = read_fla_value_heads(reader, decoder, 256, 2.0);
  mixer["type"] = "gated_deltanet";
  mixer["conv_kernel"] = taps;
  mixer["negative_eigenvalues"] = reader.boolean("allow_neg_eigval", false);
  return decoder.finish(reader, mixer);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const nlohmann::json* mixer = fla_mixer(config, "gated_deltanet");
  if (mixer == nullptr || mixer->at("output_order") != "grouped") return {};
  nlohmann::json json = write_fla_decoder(config, "gated_deltanet", "GatedDeltaNetForCausalLM");
  write_fla_value_heads(*mixer, json);
  json["allow_neg_eigval"] = mixer->at("negative_eigenvalues");
  write_fla_taps(*mixer, json);
  return json;
}

TensorRules tensors(const ModelConfig& config) { return fla_tensors(config, fla_convolutions()); }

}  // namespace

Family gated_deltanet_family() { return {"gated_deltanet", read, write, tensors}; }

}  // namespace pronghorn
