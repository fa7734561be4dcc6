// The Gated DeltaNet family (arXiv 2412.06464), as flash-linear-attention's model_type
// "gated_deltanet".
#include <cmath>

#include "base/error.h"
#include "model/families.h"
#include "model/families/fla.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  const FlaDecoder decoder = read_fla_decoder(reader, 6);
  const int64_t head_dim = reader.integer("head_dim", 256, 1, 1 << 16);
  const double width = reader.number("expand_v", 2.0, 1e-3, 64) * static_cast<double>(head_dim);
  require(width == std::floor(width), reader.path("expand_v"), "x head_dim {} is not whole",
          head_dim);
  const int64_t value_heads = reader.integer("num_v_heads", decoder.heads, 1);
  require_fla(reader, "use_gate", true);
  reader.one_of("output_gate_activation", {"swish", "silu"}, "swish");
  const int64_t taps = read_fla_taps(reader, true);
  require(taps > 0, reader.path("use_short_conv"), "false is not supported");
  return decoder.finish(reader,
                        {{"type", "gated_deltanet"},
                         {"heads", decoder.heads},
                         {"head_dim", head_dim},
                         {"value_heads", value_heads},
                         {"value_head_dim", std::llround(width)},
                         {"conv_kernel", taps},
                         {"negative_eigenvalues", reader.boolean("allow_neg_eigval", false)}});
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const nlohmann::json* mixer = fla_mixer(config, "gated_deltanet");
  if (mixer == nullptr || mixer->at("output_order") != "grouped") return {};
  nlohmann::json json = write_fla_decoder(config, "gated_deltanet", "GatedDeltaNetForCausalLM");
  json["num_heads"] = mixer->at("heads");
  json["head_dim"] = mixer->at("head_dim");
  json["num_v_heads"] = mixer->at("value_heads");
  json["expand_v"] =
      mixer->at("value_head_dim").get<double>() / mixer->at("head_dim").get<double>();
  json["allow_neg_eigval"] = mixer->at("negative_eigenvalues");
  write_fla_taps(*mixer, json);
  return json;
}

TensorRules tensors(const ModelConfig& config) { return fla_tensors(config, fla_convolutions()); }

}  // namespace

Family gated_deltanet_family() { return {"gated_deltanet", read, write, tensors}; }

}  // namespace pronghorn
