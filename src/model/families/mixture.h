// What the families share whose layers are attention and a mixture of experts, some of them with an
// ordinary feed-forward in its place.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/families/decoder.h"

namespace pronghorn {

// How a family calls the number of experts, and what the reference takes for missing keys.
struct ExpertDefaults {
  std::string count_key = "num_experts";
  int64_t experts = 0, top_k = 0;
};

// Puts a "moe" into all layers of `decoder` that `sparse` says (empty: all). settings: what the
// family adds to the numbers of experts, their width, that of the decoder unless it says another,
// and the losses.
void read_experts(ConfigReader& reader, Decoder& decoder, const ExpertDefaults& defaults,
                  const nlohmann::json& settings, std::vector<bool> sparse = {});

// The layers with experts: those that mlp_only_layers does not list and whose number, counted from
// 1, decoder_sparse_step divides.
std::vector<bool> read_sparse_layers(ConfigReader& reader, int64_t layers);

// Which layers have experts, and whether any does; the layers may have any mixer.
std::vector<bool> sparse_layers(const ModelConfig& config);
bool has_experts(const ModelConfig& config);

// As decoder_layers(); empty unless some have experts.
std::vector<const BlockConfig*> mixture_layers(const ModelConfig& config);

// Of models that has_experts() says have some: the experts of the first layer that has them, how
// many layers come before it, and the width of the first feed-forward without experts or, if all
// have them, of an expert.
const nlohmann::json& experts_of(const ModelConfig& config);
int64_t leading_dense_layers(const ModelConfig& config);
int64_t dense_size(const ModelConfig& config);

// The numbers of experts and the losses. config: has_experts().
nlohmann::json write_expert_counts(const ModelConfig& config, const std::string& count_key);

// The same and intermediate_size, which is that of the experts.
nlohmann::json write_experts(const ModelConfig& config, const std::string& count_key);

// write_decoder() with these.
nlohmann::json write_mixture(const ModelConfig& config, const std::string& model_type,
                             const std::string& architecture, const std::string& count_key);

// mlp_only_layers, decoder_sparse_step, moe_intermediate_size, norm_topk_prob, and
// intermediate_size, which is that of the layers without experts.
nlohmann::json write_sparse_layers(const ModelConfig& config);

// Our names of such matrices of all experts, one expert after another.
std::vector<std::string> expert_names(const ModelConfig& config,
                                      const std::vector<std::string>& matrices);

// Rules for experts that are published one by one; theirs: what stands before "experts". And for
// stacks of all of a layer, `gate_up` with the rows of gates before those of the others.
std::vector<TensorRule> single_experts(const std::string& theirs);
std::vector<TensorRule> stacked_experts(const ModelConfig& config, const std::string& gate_up,
                                        const std::string& down);

// The tensors with the rules in front, which come first.
TensorRules with_rules(TensorRules tensors, const std::vector<TensorRule>& rules);

}  // namespace pronghorn
