// The keys and tensors of multi-head latent attention, as DeepSeek's families and those after them
// have them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/families/decoder.h"

namespace pronghorn {

// What the reference takes for keys that a configuration does not have.
struct MlaDefaults {
  int64_t query_rank = 1536, latent = 512, head_dim = 128, rope_dim = 64;
  int64_t value_dim = 0;     // 0: hidden_size / heads
  bool interleaved = false;  // neighbouring channels are turned together
};

// A decoder with latent attention: q_lora_rank, kv_lora_rank, qk_nope_head_dim and so on.
Decoder read_mla_decoder(ConfigReader& reader, const MlaDefaults& mla,
                         const DecoderDefaults& defaults);

// Its keys, if every layer is latent attention, of this type, and a feed-forward of a decoder.
std::optional<nlohmann::json> write_mla_decoder(const ModelConfig& config,
                                                const std::string& model_type,
                                                const std::string& architecture,
                                                const std::string& mixer = "mla");

// The same of some of a model's layers, all latent attention, whatever the others are; they may
// have no positions.
nlohmann::json write_mla_layers(const ModelConfig& config,
                                const std::vector<const BlockConfig*>& layers,
                                const std::string& model_type, const std::string& architecture);

// The rule of its queries, and that of its keys and values where both are in one matrix; heads: of
// all layers.
TensorRule mla_queries(int64_t heads, const std::string& published);
TensorRule mla_keys_and_values(int64_t heads, const std::string& published);

// The rules of its attention's tensors, "model.layers.N.self_attn.*", to stand before those of the
// rest; heads: of all layers.
std::vector<TensorRule> mla_rules(int64_t heads);

// All rules, for layers that are otherwise a decoder's.
TensorRules mla_decoder_tensors(const ModelConfig& config);

}  // namespace pronghorn
