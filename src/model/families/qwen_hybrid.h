// What Qwen's hybrids share: layers of Gated DeltaNet, and of attention with an output gate and
// partly turned heads; norms are published less 1.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/families/hybrid.h"
#include "model/gguf_format.h"

namespace pronghorn {

// Ours, a key of config.json: the order in which a model holds the columns of DeltaNet's output
// projection, if not that of the files ("grouped").
constexpr const char* kQwenOutputOrder = "linear_output_order";
bool has_dealt_heads(const ModelConfig& config);

// A size that the first mixer of a type has; 1 if there is none.
int64_t first_of(const ModelConfig& config, const std::string& type, const char* key);

// The key for how many heads for multi-token prediction there are.
constexpr const char* kQwenPredictors = "mtp_num_hidden_layers";

// size: of a feed-forward where the key is missing; 0: it must be there. predictors: the number of
// heads where their key is missing.
HybridDecoder read_qwen_hybrid(ConfigReader& reader, int64_t size = 0, int64_t predictors = 0);

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
// Experts, if there are any, are published one by one or, `stacked`, as stacks; both are read.
TensorRules qwen_hybrid_tensors(const ModelConfig& config, const std::string& model, bool fused,
                                bool stacked = false);

// GGUF files, but for what feed-forwards are. interleaved: b and a are key head by key head, as
// Qwen3-Next has them; else each has a tensor of its own, and what belongs to value heads is in
// another order: the first value head of every key head, then the second of every key head.
std::vector<GgufKey> qwen_gguf_keys(const std::vector<GgufKey>& more);
std::vector<GgufKey> qwen_gguf_expert_keys();
std::vector<std::string_view> qwen_gguf_other_keys();
void read_qwen_gguf(const GgufModel& file, nlohmann::json& config);
void write_qwen_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file);
TensorRules qwen_gguf_tensors(const ModelConfig& config, bool interleaved);

// The files of Qwen3.5, dense and with experts. more: keys besides those of both.
GgufFormat qwen3_5_gguf(std::string_view architecture, const std::vector<GgufKey>& more);

}  // namespace pronghorn
