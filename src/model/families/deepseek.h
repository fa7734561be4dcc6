// The experts of DeepSeek's families and of those after them: ordinary feed-forwards in the first
// layers, shared experts beside those that are chosen, a choice from groups of experts, a factor on
// the weights of the chosen.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/families/gguf_experts.h"
#include "model/families/mixture.h"

namespace pronghorn {

// What the reference takes for keys that a configuration does not have.
struct DeepseekDefaults {
  int64_t experts = 0, top_k = 0, size = 0;
  int64_t shared = 1;  // of experts that every token is given to, each as wide as one of the others
  int64_t dense = 0;   // layers without experts
  double scale = 1;
  int64_t groups = 1, top_groups = 1;
};

// Those of DeepSeek-V3, and of V3.2 after it.
inline constexpr DeepseekDefaults kDeepseekV3 = {.experts = 256,
                                                 .top_k = 8,
                                                 .size = 2048,
                                                 .dense = 3,
                                                 .scale = 2.5,
                                                 .groups = 8,
                                                 .top_groups = 4};

// The router of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2) as settings of "moe": sigmoids, and a
// correction of the choice.
nlohmann::json read_corrected_router(ConfigReader& reader, const DeepseekDefaults& defaults);

// Puts experts into the layers of `decoder` that `sparse` says (empty: all from
// first_k_dense_replace on). router: settings of "moe".
void read_deepseek_experts(ConfigReader& reader, Decoder& decoder, const DeepseekDefaults& defaults,
                           const nlohmann::json& router, std::vector<bool> sparse = {});

// Which layers mlp_layer_types says have experts; empty if the key is not there. And the value of
// that key.
std::vector<bool> read_layer_types_of_mlp(ConfigReader& reader, int64_t layers);
nlohmann::json layer_types_of_mlp(const ModelConfig& config);

// The keys of both. config: has_experts().
nlohmann::json write_deepseek_experts(const ModelConfig& config);

// The keys of both in GGUF files, and what a table of keys cannot say: what absent keys mean there,
// and how scores are made ("softmax", "sigmoid"; only the latter have corrections).
std::vector<GgufKey> gguf_deepseek_keys();
std::string gguf_router_scores(const GgufModel& file);
void read_gguf_deepseek_experts(const GgufModel& file, nlohmann::json& config);
void write_gguf_deepseek_experts(const ModelConfig& config, GgufModel& file);

// Files of the architecture deepseek2: latent attention, and these experts. read: what
// read_gguf_deepseek2() does, and perhaps more.
void read_gguf_deepseek2(const GgufModel& file, nlohmann::json& config);
GgufFormat gguf_deepseek2(void (*read)(const GgufModel& file, nlohmann::json& config),
                          bool (*reads_it)(const GgufModel& file) = nullptr);

// The rules of the rest of the model, which `layers` gives, with those of shared experts and of
// heads for multi-token prediction.
TensorRules deepseek_tensors(const ModelConfig& config,
                             TensorRules (*layers)(const ModelConfig& config));

}  // namespace pronghorn
