// What Qwen's hybrids share: layers of Gated DeltaNet, and of attention with an output gate and
// partly turned heads; norms are published less 1.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/families/decoder.h"

namespace pronghorn {

struct QwenHybrid {
  Decoder decoder;              // its mixer: attention
  nlohmann::json delta_net;     // the mixer of the other layers
  std::vector<bool> attention;  // of each layer
};

QwenHybrid read_qwen_hybrid(ConfigReader& reader);

// The keys of such a model; nothing if it is of another kind, or has one kind of layers only.
std::optional<nlohmann::json> write_qwen_hybrid(const ModelConfig& config,
                                                const std::string& model_type,
                                                const std::string& architecture);

// model: what stands before the names. fused: projections are published key head by key head.
TensorRules qwen_hybrid_tensors(const ModelConfig& config, const std::string& model, bool fused);

}  // namespace pronghorn
