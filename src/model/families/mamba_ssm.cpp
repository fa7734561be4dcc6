// Mamba and Mamba-2 as the original library saves them (github.com/state-spaces/mamba, mamba_ssm/
// models/config_mamba.py): a config.json without model_type, and pytorch_model.bin. Only read: what
// is saved of such a model is in transformers' families.
#include <cmath>
#include <utility>

#include "base/error.h"
#include "model/families.h"
#include "model/families/backbone.h"
#include "model/families/published_keys.h"

namespace pronghorn {
namespace {

constexpr double kNormEpsilon = 1e-5;  // fixed there

// What both kinds of layer have in ssm_cfg. Defaults are those of the library.
nlohmann::json read_common(ConfigReader& ssm) {
  return {{"conv_kernel", ssm.integer("d_conv", 4, 1)},
          {"bias", ssm.boolean("bias", false)},
          {"conv_bias", ssm.boolean("conv_bias", true)},
          {"time_step_min", ssm.number("dt_min", 0.001)},
          {"time_step_max", ssm.number("dt_max", 0.1)},
          {"time_step_floor", ssm.number("dt_init_floor", 1e-4)}};
}

int64_t inner_size(ConfigReader& ssm, int64_t hidden) {
  return static_cast<int64_t>(ssm.number("expand", 2, 0.0625, 64) * static_cast<double>(hidden));
}

nlohmann::json read_mamba(ConfigReader& ssm, int64_t hidden) {
  nlohmann::json mixer = read_common(ssm);
  mixer["type"] = "mamba";
  mixer["inner_size"] = inner_size(ssm, hidden);
  mixer["state"] = ssm.integer("d_state", 16, 1);
  read_time_step_rank(ssm, "dt_rank", mixer);
  return mixer;
}

nlohmann::json read_mamba2(ConfigReader& ssm, int64_t hidden) {
  nlohmann::json mixer = read_common(ssm);
  mixer["type"] = "mamba2";
  const int64_t inner = inner_size(ssm, hidden), head_dim = ssm.integer("headdim", 64, 1);
  require(ssm.integer("d_ssm", inner) == inner, ssm.path("d_ssm"),
          "only expand x d_model = {} is supported", inner);
  require(inner % head_dim == 0, ssm.path("headdim"), "{} does not divide expand x d_model = {}",
          head_dim, inner);
  mixer["heads"] = inner / head_dim;
  mixer["head_dim"] = head_dim;
  mixer["state"] = ssm.integer("d_state", 128, 1);
  mixer["groups"] = ssm.integer("ngroups", 1, 1);
  require(ssm.boolean("rmsnorm", true), ssm.path("rmsnorm"), "false is not supported");
  require(!ssm.boolean("D_has_hdim", false), ssm.path("D_has_hdim"), "true is not supported");
  if (ssm.has("dt_limit")) mixer["time_step_limit"] = time_step_limit(ssm.raw("dt_limit"));
  return mixer;
}

ModelConfig read(ConfigReader reader) {
  const int64_t hidden = reader.integer("d_model", {}, 1, 1 << 17);
  const int64_t layers = reader.integer("n_layer", {}, 1, kMaxBlocks);
  // The table has rows up to a whole multiple.
  const int64_t words = reader.integer("vocab_size", {}, 1, 1 << 30);
  const int64_t multiple = reader.integer("pad_vocab_size_multiple", 8, 1, 1 << 20);
  nlohmann::json settings = {{"vocab_size", (words + multiple - 1) / multiple * multiple},
                             {"hidden_size", hidden},
                             {"tie_embeddings", reader.boolean("tie_embeddings", true)},
                             {"norm", {{"type", "rms_norm"}, {"epsilon", kNormEpsilon}}}};

  ConfigReader ssm(reader.has("ssm_cfg") ? reader.raw("ssm_cfg") : nlohmann::json::object(),
                   reader.path("ssm_cfg"));
  reader.ignore("ssm_cfg");
  const bool second = ssm.one_of("layer", {"Mamba1", "Mamba2"}, "Mamba1") == "Mamba2";
  const nlohmann::json mixer = second ? read_mamba2(ssm, hidden) : read_mamba(ssm, hidden);
  // How weights begin, and which kernel computes.
  for (const char* key : {"dt_init", "dt_scale", "A_init_range", "conv_init", "chunk_size",
                          "layer_idx", "device", "process_group", "sequence_parallel"}) {
    ssm.ignore(key);
  }
  finish_published(ssm);
  read_trained_context(reader, settings);
  finish_published(reader);
  const nlohmann::json layer = {{"mixer", mixer}};
  return uniform_config(reader, settings, layer, layers);
}

std::optional<nlohmann::json> write(const ModelConfig&) { return {}; }

TensorRules tensors(const ModelConfig& config) {
  TensorRules rules = backbone_tensors(config);
  rules.rules.insert(rules.rules.begin(),
                     {{"embeddings.weight"}, {"backbone.embedding.weight"}, {}});
  return rules;
}

}  // namespace

Family mamba_ssm_family() { return {"mamba_ssm", read, write, tensors}; }

}  // namespace pronghorn
