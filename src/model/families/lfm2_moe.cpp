// The LFM2 family with experts (arXiv 2511.23404), after a few layers without: sigmoids, with a
// number for each expert that counts where experts are chosen.
#include <utility>

#include "base/error.h"
#include "model/families.h"
#include "model/families/gguf_decoder.h"
#include "model/families/gguf_experts.h"
#include "model/families/lfm2.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

constexpr const char* kCount = "num_experts";
constexpr double kLeastSum = 1e-6;  // of the scores that are normalised

ModelConfig read(ConfigReader reader) {
  const int64_t size = reader.integer("intermediate_size", 7168, 1, 1 << 24);
  HybridDecoder model = read_lfm2(reader, size);
  const int64_t dense = reader.integer("num_dense_layers", 2, 0);
  std::vector<bool> sparse;
  for (int64_t i = 0; i < model.decoder.layers; ++i) sparse.push_back(i >= dense);
  const nlohmann::json settings = {{"size", reader.integer("moe_intermediate_size", 1792, 1)},
                                   {"scores", "sigmoid"},
                                   {"correction", reader.boolean("use_expert_bias", true)},
                                   {"normalize", reader.boolean("norm_topk_prob", true)},
                                   {"least_sum", kLeastSum},
                                   {"scale", reader.number("routed_scaling_factor", 1.0)}};
  read_experts(reader, model.decoder, {kCount, 32, 4}, settings, std::move(sparse));
  return model.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  if (!has_experts(config)) return {};
  std::optional<nlohmann::json> json = write_lfm2(config, "lfm2_moe", "Lfm2MoeForCausalLM");
  if (!json) return {};
  const nlohmann::json& moe = experts_of(config);
  json->update(write_experts(config, kCount));
  (*json)["num_dense_layers"] = leading_dense_layers(config);
  (*json)["intermediate_size"] = dense_size(config);
  (*json)["moe_intermediate_size"] = moe.at("size");
  (*json)["use_expert_bias"] = moe.at("correction");
  (*json)["norm_topk_prob"] = moe.at("normalize");
  (*json)["routed_scaling_factor"] = moe.at("scale");
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const std::string ours = "layers.*.ffn.", theirs = "model.layers.*.feed_forward.";
  return with_rules(lfm2_tensors(config),
                    {{{ours + "gate.e_score_correction_bias"}, {theirs + "expert_bias"}, {}},
                     {{ours + "gate.*"}, {theirs + "gate.*"}, {}},
                     {{ours + "experts.*.gate_proj.*"}, {theirs + "experts.*.w1.*"}, {}},
                     {{ours + "experts.*.up_proj.*"}, {theirs + "experts.*.w3.*"}, {}},
                     {{ours + "experts.*.down_proj.*"}, {theirs + "experts.*.w2.*"}, {}}});
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_lfm2_gguf(file, config);
  const std::string key = file.key(kGgufScores);
  const int64_t said = file.metadata.integer(key, gguf_scores::kSigmoid);
  require(said == gguf_scores::kSigmoid, file.metadata.path(key), "{} is not what this family has",
          said);
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_lfm2_gguf(config, json, file);
  file.metadata.set(file.key(kGgufScores), GgufValue::u32(gguf_scores::kSigmoid));
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return with_gguf_experts(lfm2_gguf_tensors(config), config);
}

std::vector<std::string_view> gguf_other_keys() {
  std::vector<std::string_view> keys = gguf_decoder_other_keys();
  keys.push_back(kGgufScores);
  return keys;
}

std::vector<GgufKey> gguf_keys() {
  std::vector<GgufKey> keys = gguf_expert_keys(kCount);
  keys.insert(keys.end(), {{"expert_feed_forward_length", "moe_intermediate_size"},
                           {"leading_dense_block_count", "num_dense_layers"}});
  return lfm2_gguf_keys(keys);
}

}  // namespace

Family lfm2_moe_family() {
  static const GgufFormat gguf = {"lfm2moe", gguf_keys(), gguf_other_keys(),
                                  read_gguf, write_gguf,  gguf_tensors};
  return {"lfm2_moe", read, write, tensors, &gguf};
}

}  // namespace pronghorn
