// What Qwen's hybrids share: layers of Gated DeltaNet, and of attention with an output gate and
// partly turned heads; norms are published less 1.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/families/hybrid.h"

namespace pronghorn {

// size: of a feed-forward where the key is missing; 0: it must be there.
HybridDecoder read_qwen_hybrid(ConfigReader& reader, int64_t size = 0);

// Puts experts into the layers that `sparse` says: a softmax over the chosen, if the family's files
// do not say otherwise, beside one that is shared, behind a gate of its own.
void read_qwen_experts(ConfigReader& reader, Decoder& decoder, int64_t experts, int64_t top_k,
                       std::vector<bool> sparse = {});

// The keys that this has read, besides those of layers without experts.
nlohmann::json write_qwen_experts(const ModelConfig& config);

// The text model within one that sees, and such a file around `text`, if there is one.
ConfigReader qwen_text(ConfigReader& whole);
std::optional<nlohmann::json> write_qwen_whole(const ModelConfig& config,
                                               std::optional<nlohmann::json> text,
                                               const std::string& model_type,
                                               const std::string& architecture);

// The keys of such a model; nothing if it is of another kind, or has one kind of layers only.
std::optional<nlohmann::json> write_qwen_hybrid(const ModelConfig& config,
                                                const std::string& model_type,
                                                const std::string& architecture);

// model: what stands before the names. fused: projections are published key head by key head.
TensorRules qwen_hybrid_tensors(const ModelConfig& config, const std::string& model, bool fused);

// The same of a model that may have experts: published one by one or, `stacked`, as stacks; both
// are read.
TensorRules qwen_mixture_tensors(const ModelConfig& config, const std::string& model, bool fused,
                                 bool stacked);

}  // namespace pronghorn
