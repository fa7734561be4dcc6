// Small models whose sequences can lie on several ranks.
#pragma once

#include <string>
#include <vector>

#include "formats/json.h"
#include "model/config.h"

namespace pronghorn::testing_support {

constexpr int64_t kShardedVocabulary = 61;

// A model of two blocks with this mixer.
inline ModelConfig config_with(const std::string& mixer, const std::string& more = "") {
  const nlohmann::json config = parse_json(
      R"({"model_type": "pronghorn", "hidden_size": 24, "vocab_size": 61, "pattern": "2b",
          "initializer_range": 0.2, "blocks": {"b": {"mixer": )" +
          mixer + R"(, "ffn": {"type": "swiglu", "size": 40}}})" + more + "}",
      "test");
  return read_pronghorn_config(ConfigReader(config, "test"));
}

// ring: whether pieces can be handed on.
struct ShardedCase {
  std::string name, mixer;
  bool ring = true;
  std::string more = {};
};

inline const std::vector<ShardedCase>& sharded_cases() {
  static const std::vector<ShardedCase> all = {
      {"full", R"({"type": "attention", "heads": 4, "head_dim": 6, "rope": {}, "sinks": true})"},
      {"window", R"({"type": "attention", "heads": 4, "head_dim": 6, "window": 20, "rope": {}})"},
      {"grouped", R"({"type": "attention", "heads": 8, "kv_heads": 2, "head_dim": 6})"},
      {"one_key", R"({"type": "attention", "heads": 4, "kv_heads": 1, "head_dim": 6,
                      "soft_cap": 5})",
       true, R"(, "recompute": true)"},
      {"latent", R"({"type": "mla", "heads": 4, "latent": 16, "head_dim": 6, "rope_dim": 4,
                     "value_dim": 6, "rope": {}})"},
      {"transformer_xl", R"({"type": "transformer_xl", "heads": 4, "memory": 50, "segment": 32,
                             "position_width": 10})"},
      {"mamba", R"({"type": "mamba", "state": 5})"},
      {"mamba2", R"({"type": "mamba2", "heads": 4, "state": 10, "groups": 2})"},
      {"levels", R"({"type": "mamba2", "heads": 4, "state": 10, "levels": 4, "bucket": 2})"},
      {"gated_deltanet", R"({"type": "gated_deltanet", "heads": 4, "value_heads": 8, "head_dim": 8,
                             "value_head_dim": 6})"},
      {"channel_decay", R"({"type": "gla", "heads": 4})"},
      {"constant_decay", R"({"type": "retnet", "heads": 4})"},
      {"rwkv6", R"({"type": "rwkv6", "heads": 4, "mix_low_rank_dim": 5,
                    "decay_low_rank_dim": 6})"},
      {"rg_lru", R"({"type": "rg_lru", "gate_blocks": 2})", false},
      {"mamba3", R"({"type": "mamba3", "heads": 4, "state": 8})", false}};
  return all;
}

}  // namespace pronghorn::testing_support
