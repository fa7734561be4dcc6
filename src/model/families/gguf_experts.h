// Experts in GGUF files: the matrices of all experts of a layer are one stack for gates, one for
// values, one for outputs, an expert after the other in whole blocks.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "model/gguf_format.h"

namespace pronghorn {

// The key for how routers make scores, and its values.
constexpr const char* kGgufScores = "expert_gating_func";
namespace gguf_scores {
constexpr uint32_t kNotSaid = 0, kSoftmax = 1, kSigmoid = 2, kSoftmaxOfChosen = 3;
}  // namespace gguf_scores

// The keys of a decoder with experts and some more. count_key: what the family's config.json calls
// the number of experts.
std::vector<GgufKey> gguf_mixture_keys(std::string_view count_key,
                                       const std::vector<GgufKey>& more = {});
// Keys of the experts alone: how many there are, and how many a token is given to. required: the
// architecture always has some.
std::vector<GgufKey> gguf_expert_keys(std::string_view count_key, bool required = true);

// gguf_decoder_other_keys() and what is not looked at where an architecture has one kind of router.
std::vector<std::string_view> gguf_mixture_other_keys();

// For families whose routers are a softmax, over all or over the chosen: an architecture has one of
// these. Throws Error if the file says that its routers are others.
void require_gguf_softmax(const GgufModel& file);
// The same, and read_gguf_attention().
void read_gguf_softmax_experts(const GgufModel& file, nlohmann::json& config);

// Whether the file has no experts, where its architecture may have some.
bool gguf_without_experts(const GgufModel& file);

// config[key], if it is not there: the size of the inner axis of the first tensor "blk.N.NAME",
// such as the rows of "ffn_up_shexp.weight", which older files do not say.
void read_gguf_inner_size(const GgufModel& file, std::string_view name, const char* key,
                          nlohmann::json& config);

// How many layers come before the first that has a router among its tensors.
int64_t gguf_leading_dense_layers(const GgufModel& file, int64_t layers);

// The rules of a model's other tensors, with those of experts, routers and shared experts in front.
// Files with one tensor for each expert, or with gates and values in one stack, are read too.
TensorRules with_gguf_experts(TensorRules tensors, const ModelConfig& config);

}  // namespace pronghorn
