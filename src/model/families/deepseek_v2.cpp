// The DeepSeek-V2 family (arXiv 2405.04434): multi-head latent attention, and experts chosen by
// their softmax, from the groups whose best expert scores highest.
#include "base/error.h"
#include "model/families.h"
#include "model/families/deepseek.h"
#include "model/families/mla_keys.h"

namespace pronghorn {
namespace {

nlohmann::json read_router(ConfigReader& reader) {
  reader.one_of("scoring_func", {"softmax"}, "softmax");
  // The reference passes over this key; the authors' program divides by the sum and then leaves the
  // factor out. Published files say false.
  require(!reader.boolean("norm_topk_prob", false), reader.path("norm_topk_prob"),
          "true does not mean the same to all programs, and is not read in this family");
  nlohmann::json router = {{"normalize", false}};
  const std::string method =
      reader.one_of("topk_method", {"greedy", "group_limited_greedy"}, "greedy");
  if (method == "greedy") {
    for (const char* key : {"n_group", "topk_group"}) reader.ignore(key);
    return router;
  }
  router["groups"] = reader.integer("n_group", {}, 1);
  router["top_groups"] = reader.integer("topk_group", {}, 1);
  return router;
}

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_mla_decoder(reader, {.value_dim = 128, .interleaved = true}, {});
  require(!reader.boolean("mlp_bias", false), reader.path("mlp_bias"),
          "biases of feed-forwards are not read in this family");
  reader.integer("num_experts_per_tok", {}, 1);
  const DeepseekDefaults defaults = {.experts = 64, .size = 1407, .shared = 2};
  read_deepseek_experts(reader, decoder, defaults, read_router(reader));
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  std::optional<nlohmann::json> json =
      write_mla_decoder(config, "deepseek_v2", "DeepseekV2ForCausalLM");
  if (!json || !has_experts(config)) return {};
  json->update(write_deepseek_experts(config));
  (*json)["topk_method"] = experts_of(config).at("groups") == 1 ? "greedy" : "group_limited_greedy";
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  return deepseek_tensors(config, mla_decoder_tensors);
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_deepseek2(file, config);
  config["topk_method"] = config.at("n_group") == 1 ? "greedy" : "group_limited_greedy";
}

bool gguf_reads_it(const GgufModel& file) { return gguf_router_scores(file) == "softmax"; }

}  // namespace

Family deepseek_v2_family() {
  static const GgufFormat gguf = gguf_deepseek2(read_gguf, gguf_reads_it);
  return {"deepseek_v2", read, write, tensors, &gguf};
}

}  // namespace pronghorn
