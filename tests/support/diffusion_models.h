// Tiny diffusion models for tests, with the vocabulary of tiny_models.h: the last token masks.
#pragma once

#include <string>

#include "support/tiny_models.h"

namespace pronghorn::testing_support {

constexpr int32_t kMaskToken = 60;

// pattern: of attention (a) with rotary positions, latent attention (l), Mamba-2 (m), RWKV-7 (r),
// KDA (k), Mamba (s), RG-LRU (h), S4D (d), attention in a window (w) and to chosen blocks (b),
// Longformer both ways (g). diffusion: what the object says besides, `"block": 4`.
inline ModelConfig diffusion_config(const std::string& pattern, const std::string& diffusion = "",
                                    double initializer_range = 0.3) {
  const nlohmann::json blocks = parse_json(
      R"({"a": {"mixer": {"type": "attention", "heads": 2, "kv_heads": 1, "rope": {}},
                "ffn": {"type": "swiglu", "size": 32}},
          "l": {"mixer": {"type": "mla", "heads": 2, "head_dim": 6, "rope_dim": 4, "latent": 10,
                          "rope": {}}},
          "m": {"mixer": {"type": "mamba2", "heads": 3, "state": 5}},
          "r": {"mixer": {"type": "rwkv7", "heads": 2, "head_dim": 8, "decay_low_rank_dim": 4,
                          "a_low_rank_dim": 4, "v_low_rank_dim": 3, "gate_low_rank_dim": 4}},
          "k": {"mixer": {"type": "kda", "heads": 2, "head_dim": 8}},
          "s": {"mixer": {"type": "mamba", "state": 5}},
          "h": {"mixer": {"type": "rg_lru", "gate_blocks": 2}},
          "d": {"mixer": {"type": "s4d", "state": 8}},
          "w": {"mixer": {"type": "attention", "heads": 2, "window": 5, "rope": {}}},
          "b": {"mixer": {"type": "moba", "heads": 2, "block": 64, "top": 2, "rope": {}}},
          "g": {"mixer": {"type": "longformer", "heads": 2, "window": 3, "global": 2,
                          "both_ways": true, "rope": {}}}})",
      "test");
  std::string body = "\"pattern\": \"" + pattern + "\", \"diffusion\": {" + diffusion + "}";
  nlohmann::json used;
  for (const auto& [name, block] : blocks.items()) {
    if (pattern.find(name) != std::string::npos) used[name] = block;
  }
  return model_config(body + ", \"blocks\": " + used.dump(), initializer_range);
}

}  // namespace pronghorn::testing_support
