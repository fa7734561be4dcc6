// The Mamba-2 family (arXiv 2405.21060), as transformers' model_type "mamba2".
#include "base/error.h"
#include "model/families.h"
#include "model/families/mapping.h"

namespace pronghorn {
namespace {

// As Python's json writes it (a bare word, which read_config_json makes a string), as newer
// versions of transformers do, or as null, which others write.
bool is_infinity(const nlohmann::json& value) {
  return value.is_null() || value == "Infinity" ||
         value == nlohmann::json{{"__float__", "Infinity"}};
}

ModelConfig read(ConfigReader reader) {
  ignore_common_keys(reader);
  const int64_t hidden = reader.integer("hidden_size", {}, 1, 1 << 17);
  nlohmann::json mixer = {{"type", "mamba2"}};
  mixer["heads"] = reader.integer("num_heads", 128, 1);
  mixer["head_dim"] = reader.integer("head_dim", 64, 1);
  const double expand = reader.number("expand", 2.0, 0.0625, 64);
  require(mixer["heads"].get<int64_t>() * mixer["head_dim"].get<int64_t>() ==
              static_cast<int64_t>(expand * static_cast<double>(hidden)),
          reader.path("num_heads"), "{} heads of {} are not expand {} x hidden_size {}",
          mixer["heads"].dump(), mixer["head_dim"].dump(), expand, hidden);
  mixer["state"] = reader.integer("state_size", 128, 1);
  mixer["groups"] = reader.integer("n_groups", 8, 1);
  mixer["conv_kernel"] = reader.integer("conv_kernel", 4, 1);
  mixer["bias"] = reader.boolean("use_bias", false);
  mixer["conv_bias"] = reader.boolean("use_conv_bias", true);
  mixer["time_step_min"] = reader.number("time_step_min", 0.001);
  mixer["time_step_max"] = reader.number("time_step_max", 0.1);
  mixer["time_step_floor"] = reader.number("time_step_floor", 1e-4);
  if (reader.has("time_step_limit")) {
    nlohmann::json limit = reader.raw("time_step_limit");
    if (limit.is_array() && limit.size() == 2 && is_infinity(limit[1])) limit[1] = nullptr;
    mixer["time_step_limit"] = limit;
  }
  reader.ignore("time_step_limit");
  reader.one_of("hidden_act", {"silu"}, "silu");
  require(reader.boolean("rms_norm", true), reader.path("rms_norm"), "false is not supported");
  for (const char* key : {"residual_in_fp32", "chunk_size", "time_step_rank", "norm_before_gate",
                          "intermediate_size"}) {
    reader.ignore(key);
  }
  const nlohmann::json settings = {
      {"vocab_size", reader.integer("vocab_size", {}, 1)},
      {"hidden_size", hidden},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", false)},
      {"norm", {{"type", "rms_norm"}, {"epsilon", reader.number("layer_norm_epsilon", 1e-5, 0)}}}};
  const int64_t layers = reader.integer("num_hidden_layers", {}, 1, kMaxBlocks);
  reader.finish();
  return uniform_config(reader, settings, {{"mixer", mixer}}, layers);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const BlockConfig* block = uniform_block(config, "mamba2");
  if (block == nullptr || !block->feed_forward.is_null() || config.norm != Norm::Kind::rms_norm) {
    return {};
  }
  const nlohmann::json& mixer = block->mixers.front();
  const int64_t inner = mixer.at("heads").get<int64_t>() * mixer.at("head_dim").get<int64_t>();
  const nlohmann::json& limit = mixer.at("time_step_limit");
  // The reference reads an absent limit as (0, infinity), which JSON cannot spell.
  const bool no_limit = limit.at(0) == 0.0 && limit.at(1).is_null();
  if (inner % config.hidden_size != 0 || (!no_limit && limit.at(1).is_null())) return {};
  nlohmann::json json = {{"model_type", "mamba2"},
                         {"architectures", {"Mamba2ForCausalLM"}},
                         {"vocab_size", config.vocab_size},
                         {"hidden_size", config.hidden_size},
                         {"expand", inner / config.hidden_size},
                         {"num_hidden_layers", config.block_count()},
                         {"num_heads", mixer.at("heads")},
                         {"head_dim", mixer.at("head_dim")},
                         {"state_size", mixer.at("state")},
                         {"n_groups", mixer.at("groups")},
                         {"conv_kernel", mixer.at("conv_kernel")},
                         {"time_step_min", mixer.at("time_step_min")},
                         {"time_step_max", mixer.at("time_step_max")},
                         {"time_step_floor", mixer.at("time_step_floor")},
                         {"use_bias", mixer.at("bias")},
                         {"use_conv_bias", mixer.at("conv_bias")},
                         {"hidden_act", "silu"},
                         {"rms_norm", true},
                         {"layer_norm_epsilon", config.norm_epsilon},
                         {"tie_word_embeddings", config.tie_embeddings},
                         {"torch_dtype", "float32"}};
  if (!no_limit) json["time_step_limit"] = limit;
  return json;
}

}  // namespace

Family mamba2_family() { return {"mamba2", read, write, backbone_name}; }

}  // namespace pronghorn
