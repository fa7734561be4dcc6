// Models of Kimi Delta Attention alone (arXiv 2510.26692), as flash-linear-attention's model_type
// "kda".
#include <cmath>

#include "base/error.h"
#include "model/families.h"
#include "model/families/fla.h"

namespace pronghorn {
namespace {

constexpr double kSafeBound = -5;  // below it the reference's faster kernel refuses to run

ModelConfig read(ConfigReader reader) {
  const FlaDecoder decoder = read_fla_decoder(reader, 16);
  const int64_t head_dim = reader.integer("head_dim", 128, 1, 1 << 16);
  const double width = reader.number("expand_v", 1.0, 1e-3, 64) * static_cast<double>(head_dim);
  require(width == std::floor(width), reader.path("expand_v"), "x head_dim {} is not whole",
          head_dim);
  const int64_t value_heads = reader.integer("num_v_heads", decoder.heads, 1);
  nlohmann::json mixer = {{"type", "kda"},
                          {"heads", decoder.heads},
                          {"head_dim", head_dim},
                          {"value_heads", value_heads},
                          {"value_head_dim", std::llround(width)},
                          {"conv_kernel", read_fla_taps(reader, true)},
                          {"negative_eigenvalues", reader.boolean("allow_neg_eigval", false)}};
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
  json["num_heads"] = mixer->at("heads");
  json["head_dim"] = mixer->at("head_dim");
  json["num_v_heads"] = mixer->at("value_heads");
  json["expand_v"] =
      mixer->at("value_head_dim").get<double>() / mixer->at("head_dim").get<double>();
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
