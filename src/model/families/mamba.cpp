// The Mamba family (arXiv 2312.00752), as transformers' model_type "mamba".
#include "base/error.h"
#include "model/families.h"
#include "model/families/mapping.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  ignore_common_keys(reader);
  const int64_t hidden = reader.integer("hidden_size", {}, 1, 1 << 17);
  const double expand = reader.number("expand", 2.0, 0.0625, 64);
  nlohmann::json mixer = {{"type", "mamba"}};
  mixer["inner_size"] = reader.integer(
      "intermediate_size", static_cast<int64_t>(expand * static_cast<double>(hidden)), 1);
  mixer["state"] = reader.integer("state_size", 16, 1);
  mixer["conv_kernel"] = reader.integer("conv_kernel", 4, 1);
  const nlohmann::json& rank = reader.raw("time_step_rank");
  if (rank.is_number_integer()) mixer["time_step_rank"] = rank;
  mixer["bias"] = reader.boolean("use_bias", false);
  mixer["conv_bias"] = reader.boolean("use_conv_bias", true);
  mixer["time_step_min"] = reader.number("time_step_min", 0.001);
  mixer["time_step_max"] = reader.number("time_step_max", 0.1);
  mixer["time_step_floor"] = reader.number("time_step_floor", 1e-4);
  reader.one_of("hidden_act", {"silu"}, "silu");
  for (const char* key : {"residual_in_fp32", "time_step_scale", "time_step_init_scheme",
                          "use_mambapy", "use_associative_scan"}) {
    reader.ignore(key);
  }
  const nlohmann::json settings = {
      {"vocab_size", reader.integer("vocab_size", {}, 1)},
      {"hidden_size", hidden},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", true)},
      {"norm", {{"type", "rms_norm"}, {"epsilon", reader.number("layer_norm_epsilon", 1e-5, 0)}}}};
  const int64_t layers = reader.integer("num_hidden_layers", {}, 1, kMaxBlocks);
  reader.finish();
  return uniform_config(reader, settings, {{"mixer", mixer}}, layers);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const BlockConfig* block = uniform_block(config, "mamba");
  if (block == nullptr || !block->feed_forward.is_null() || config.norm != Norm::Kind::rms_norm) {
    return {};
  }
  const nlohmann::json& mixer = block->mixers.front();
  // The family derives the inner size from a whole expansion factor.
  const int64_t inner = mixer.at("inner_size");
  if (inner % config.hidden_size != 0) return {};
  return nlohmann::json{{"model_type", "mamba"},
                        {"architectures", {"MambaForCausalLM"}},
                        {"vocab_size", config.vocab_size},
                        {"hidden_size", config.hidden_size},
                        {"intermediate_size", inner},
                        {"expand", inner / config.hidden_size},
                        {"num_hidden_layers", config.block_count()},
                        {"state_size", mixer.at("state")},
                        {"conv_kernel", mixer.at("conv_kernel")},
                        {"time_step_rank", mixer.at("time_step_rank")},
                        {"time_step_min", mixer.at("time_step_min")},
                        {"time_step_max", mixer.at("time_step_max")},
                        {"time_step_floor", mixer.at("time_step_floor")},
                        {"use_bias", mixer.at("bias")},
                        {"use_conv_bias", mixer.at("conv_bias")},
                        {"hidden_act", "silu"},
                        {"layer_norm_epsilon", config.norm_epsilon},
                        {"tie_word_embeddings", config.tie_embeddings},
                        {"torch_dtype", "float32"}};
}

}  // namespace

Family mamba_family() { return {"mamba", read, write, backbone_name}; }

}  // namespace pronghorn
