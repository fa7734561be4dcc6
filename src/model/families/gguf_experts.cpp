#include "model/families/gguf_experts.h"

#include <string>
#include <utility>

#include "base/error.h"
#include "model/families/gguf_decoder.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

// Of our names and theirs.
constexpr std::pair<const char*, const char*> kMatrices[] = {
    {"gate_proj", "ffn_gate"}, {"up_proj", "ffn_up"}, {"down_proj", "ffn_down"}};

}  // namespace

std::vector<GgufKey> gguf_expert_keys(std::string_view count_key, bool required) {
  return {{"expert_count", count_key, GgufKind::u32, required},
          {"expert_used_count", "num_experts_per_tok", GgufKind::u32, required}};
}

std::vector<GgufKey> gguf_mixture_keys(std::string_view count_key,
                                       const std::vector<GgufKey>& more) {
  std::vector<GgufKey> keys = gguf_decoder_keys(gguf_expert_keys(count_key));
  keys.insert(keys.end(), more.begin(), more.end());
  return keys;
}

std::vector<std::string_view> gguf_mixture_other_keys() {
  std::vector<std::string_view> keys = gguf_decoder_other_keys();
  keys.insert(keys.end(), {kGgufScores, "expert_weights_norm"});
  return keys;
}

void require_gguf_softmax(const GgufModel& file) {
  using namespace gguf_scores;
  const std::string scores = file.key(kGgufScores);
  const int64_t said = file.metadata.integer(scores, kNotSaid);
  require(said == kNotSaid || said == kSoftmax || said == kSoftmaxOfChosen,
          file.metadata.path(scores), "{} is not supported for this architecture", said);
}

void read_gguf_softmax_experts(const GgufModel& file, nlohmann::json& config) {
  require_gguf_softmax(file);
  read_gguf_attention(file, config);
}

bool gguf_without_experts(const GgufModel& file) {
  return file.metadata.integer(file.key("expert_count"), 0) == 0;
}

void read_gguf_inner_size(const GgufModel& file, std::string_view name, const char* key,
                          nlohmann::json& config) {
  if (config.contains(key)) return;
  const std::string end = fmt::format(".{}", name);
  for (const auto& [tensor, shape] : file.shapes) {
    if (!tensor.starts_with("blk.") || !tensor.ends_with(end) || shape.size() < 2) continue;
    config[key] = shape[shape.size() - 2];
    return;
  }
}

int64_t gguf_leading_dense_layers(const GgufModel& file, int64_t layers) {
  int64_t dense = 0;
  while (dense < layers && !file.has(fmt::format("blk.{}.ffn_gate_inp.weight", dense))) ++dense;
  return dense;
}

TensorRules with_gguf_experts(TensorRules tensors, const ModelConfig& config) {
  if (!has_experts(config)) return tensors;
  const std::string ffn = "layers.*.ffn.", blk = "blk.*.";
  const auto experts = experts_of(config).at("experts").get<int64_t>();
  std::vector<TensorRule> rules = {
      {{ffn + "gate.weight"}, {blk + "ffn_gate_inp.weight"}, {}},
      {{ffn + "gate.bias"}, {blk + "ffn_gate_inp.bias"}, {}},
      {{ffn + "gate.e_score_correction_bias"}, {blk + "exp_probs_b.bias"}, {}},
      {{ffn + "shared_expert_gate.weight"}, {blk + "ffn_gate_inp_shexp.weight"}, {}}};
  for (const auto& [ours, theirs] : kMatrices) {
    for (const std::string kind : {".weight", ".bias"}) {
      rules.push_back({expert_names(config, {ours + kind}),
                       {blk + theirs + "_exps" + kind},
                       transforms::unstack()});
    }
    rules.push_back({{fmt::format("{}shared_expert.{}.weight", ffn, ours)},
                     {fmt::format("{}{}_shexp.weight", blk, theirs)},
                     {}});
    tensors.layouts.push_back({{fmt::format("{}experts.*.{}.weight", ffn, ours)},
                               {fmt::format("{}{}.*.weight", blk, theirs)},
                               {}});
  }
  tensors.layouts.push_back({expert_names(config, {"gate_proj.weight", "up_proj.weight"}),
                             {blk + "ffn_gate_up_exps.weight"},
                             transforms::fold(experts).then(transforms::split())});
  return with_rules(std::move(tensors), rules);
}

}  // namespace pronghorn
