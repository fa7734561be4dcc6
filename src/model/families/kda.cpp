// Models of Kimi Delta Attention alone (arXiv 2510.26692), as flash-linear-attention's model_type
// "kda".
#include "base/error.h"
#include "model/families.h"
#include "model/families/fla.h"

namespace pronghorn {
namespace {

constexpr double kSafeBound = -5;  // below it the reference's faster kernel refuses to run

ModelConfig read(ConfigReader reader) {
  const FlaDecoder decoder = read_fla_decoder(reader, 16);
  nlohmann::json mixer = read_fla_value_heads(reader, decoder, 128, 1.0);
  mixer["type"] = "kda";
  mixer["conv_kernel"] = read_fla_taps(reader, true);
  mixer["negative_eigenvalues"] = reader.boolean("allow_neg_eigval", false);
  if (reader.has("lower_bound")) {
    const double bound = reader.number("lower_bound", 0.0, -1000, 0);
    require(bound < 0, reader.path("lower_bound"), "{} leaves no decay", bound);
    mixer["lower_bound"] = bound;
  }
  // Which kernel the reference runs.
  require(!reader.boolean("safe_gate", false) || reader.has("lower_bound"),
          reader.path("safe_gate"), "needs a lower_bound");
  reader.ignore("lower_bound");
  return decoder.finish(reader, mixer);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const nlohmann::json* mixer = fla_mixer(config, "kda");
  if (mixer == nullptr || !mixer->at("gate_bias")) return {};
  nlohmann::json json = write_fla_decoder(config, "kda", "KDAForCausalLM");
  write_fla_value_heads(*mixer, json);
  json["allow_neg_eigval"] = mixer->at("negative_eigenvalues");
  if (mixer->at("lower_bound") != 0.0) {
    json["lower_bound"] = mixer->at("lower_bound");
    json["safe_gate"] = mixer->at("lower_bound").get<double>() >= kSafeBound;
  }
  write_fla_taps(*mixer, json);
  return json;
}

TensorRules tensors(const ModelConfig& config) { return fla_tensors(config, fla_convolutions()); }

}  // namespace

Family kda_family() { return {"kda", read, write, tensors}; }

}  // namespace pronghorn
