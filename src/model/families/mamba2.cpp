// The Mamba-2 family (arXiv 2405.21060), as transformers' model_type "mamba2".
#include <cmath>
#include <utility>

#include "base/error.h"
#include "model/families.h"
#include "model/families/backbone.h"
#include "model/families/gguf_hybrid.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  const int64_t hidden = reader.integer("hidden_size", {}, 1, 1 << 17);
  nlohmann::json mixer = {{"type", "mamba2"}};
  mixer["heads"] = reader.integer("num_heads", 128, 1);
  mixer["head_dim"] = reader.integer("head_dim", 64, 1);
  const double expand = reader.number("expand", 2.0, 0.0625, 64);
  require(mixer["heads"].get<int64_t>() * mixer["head_dim"].get<int64_t>() ==
              std::llround(expand * static_cast<double>(hidden)),
          reader.path("num_heads"), "{} heads of {} are not expand {} x hidden_size {}",
          mixer["heads"].dump(), mixer["head_dim"].dump(), expand, hidden);
  mixer["state"] = reader.integer("state_size", 128, 1);
  mixer["groups"] = reader.integer("n_groups", 8, 1);
  if (reader.has("time_step_limit")) {
    mixer["time_step_limit"] = time_step_limit(reader.raw("time_step_limit"));
  }
  reader.ignore("time_step_limit");
  require(reader.boolean("rms_norm", true), reader.path("rms_norm"), "false is not supported");
  for (const char* key :
       {"chunk_size", "time_step_rank", "norm_before_gate", "intermediate_size"}) {
    reader.ignore(key);
  }
  return read_backbone(std::move(reader), std::move(mixer), hidden, false);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const BlockConfig* block = uniform_block(config, "mamba2");
  if (block == nullptr) return {};
  const nlohmann::json& mixer = block->mixers.front();
  const int64_t inner = mixer.at("heads").get<int64_t>() * mixer.at("head_dim").get<int64_t>();
  const nlohmann::json& limit = mixer.at("time_step_limit");
  // The reference reads an absent limit as (0, infinity), which JSON cannot spell.
  const bool no_limit = limit.at(0) == 0.0 && limit.at(1).is_null();
  if (inner % config.hidden_size != 0 || (!no_limit && limit.at(1).is_null())) return {};
  nlohmann::json json = {{"model_type", "mamba2"},
                         {"architectures", {"Mamba2ForCausalLM"}},
                         {"expand", inner / config.hidden_size},
                         {"num_heads", mixer.at("heads")},
                         {"head_dim", mixer.at("head_dim")},
                         {"n_groups", mixer.at("groups")},
                         {"rms_norm", true}};
  json.update(write_backbone(config, mixer));
  if (!no_limit) json["time_step_limit"] = limit;
  return json;
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_backbone_gguf(file, config);
  config["head_dim"] = read_gguf_state_head_dim(file);
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_backbone_gguf(json, file);
  write_gguf_mamba2(config, file);
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return gguf_hybrid_tensors(config, {}, {{"mamba2", "", gguf_mamba2_rules(config)}});
}

}  // namespace

Family mamba2_family() {
  static const GgufFormat gguf = {
      "mamba2",
      backbone_gguf_keys({{"ssm.group_count", "n_groups"}, {"ssm.time_step_rank", "num_heads"}}),
      backbone_gguf_other_keys(),
      read_gguf,
      write_gguf,
      gguf_tensors};
  return {"mamba2", read, write, backbone_tensors, &gguf};
}

}  // namespace pronghorn
