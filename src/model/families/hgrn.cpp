// The HGRN family (arXiv 2311.04823), as flash-linear-attention's model_type "hgrn".
#include "base/error.h"
#include "layers/toolbox.h"
#include "model/families.h"
#include "model/families/fla.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  const FlaDecoder decoder = read_fla_decoder(reader, 0);
  const int64_t most = limits::kWidth / decoder.hidden_size;
  const int64_t width = decoder.hidden_size * reader.integer("expand_ratio", 1, 1, most);
  require(read_fla_taps(reader, false) == 0, reader.path("use_short_conv"),
          "true is not supported");
  return decoder.finish(reader, {{"type", "hgrn"},
                                 {"width", width},
                                 {"lower_bound", reader.boolean("use_lower_bound", true)}});
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const nlohmann::json* mixer = fla_mixer(config, "hgrn");
  if (mixer == nullptr) return {};
  const int64_t width = mixer->at("width");
  if (width % config.hidden_size != 0) return {};
  nlohmann::json json = write_fla_decoder(config, "hgrn", "HGRNForCausalLM");
  json["expand_ratio"] = width / config.hidden_size;
  json["use_lower_bound"] = mixer->at("lower_bound");
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  return fla_tensors(config, {}, {{{"lower_bounds"}, {"model.lower_bounds"}, {}}});
}

}  // namespace

Family hgrn_family() { return {"hgrn", read, write, tensors}; }

}  // namespace pronghorn
