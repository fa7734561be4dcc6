// The HGRN2 family (arXiv 2404.07904), as flash-linear-attention's model_type "hgrn2".
#include "base/error.h"
#include "model/families.h"
#include "model/families/fla.h"

namespace pronghorn {
namespace {

constexpr double kNormEpsilon = 1e-5;  // of the output, whatever norm_eps is

ModelConfig read(ConfigReader reader) {
  const FlaDecoder decoder = read_fla_decoder(reader, 0);
  const int64_t hidden = decoder.hidden_size;
  int64_t head_dim = 0;
  if (is_null(reader, "expand_ratio")) {
    const int64_t heads = reader.integer("num_heads", {}, 1, hidden);
    require(hidden % heads == 0, reader.path("num_heads"), "{} does not divide hidden_size {}",
            heads, hidden);
    head_dim = hidden / heads;
  } else {
    head_dim = reader.integer("expand_ratio", 128, 1, hidden);
    require(hidden % head_dim == 0, reader.path("expand_ratio"),
            "{} does not divide hidden_size {}", head_dim, hidden);
  }
  reader.ignore("num_heads");
  require(read_fla_taps(reader, false) == 0, reader.path("use_short_conv"),
          "true is not supported");
  nlohmann::json mixer = {{"type", "hgrn2"},
                          {"heads", hidden / head_dim},
                          {"head_dim", head_dim},
                          {"lower_bound", reader.boolean("use_lower_bound", true)}};
  if (decoder.settings.at("norm").at("epsilon") != kNormEpsilon) {
    mixer["norm_epsilon"] = kNormEpsilon;
  }
  return decoder.finish(reader, mixer);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const nlohmann::json* mixer = fla_mixer(config, "hgrn2");
  if (mixer == nullptr || fla_expansion(config, *mixer, "head_dim") != 1 ||
      fla_expansion(config, *mixer, "value_head_dim") != 1) {
    return {};
  }
  nlohmann::json json = write_fla_decoder(config, "hgrn2", "HGRN2ForCausalLM");
  json["num_heads"] = mixer->at("heads");
  json["expand_ratio"] = mixer->at("head_dim");
  json["use_lower_bound"] = mixer->at("lower_bound");
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  return fla_tensors(config, {}, {{{"lower_bounds"}, {"model.lower_bounds"}, {}}});
}

}  // namespace

Family hgrn2_family() { return {"hgrn2", read, write, tensors}; }

}  // namespace pronghorn
